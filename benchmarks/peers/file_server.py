"""Starlette's FileResponse on uvicorn with uvloop; arguments: folder, port."""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse

folder, port = sys.argv[1:]
app = FastAPI()


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/{name}")
async def file(name: str) -> FileResponse:
    return FileResponse(Path(folder, name))


uvicorn.run(app, port=int(port), log_level="error")
