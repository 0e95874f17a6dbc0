"""tuspyserver as its documentation has it, on uvicorn with uvloop; arguments: folder, port."""

import sys

import uvicorn
from fastapi import FastAPI
from tuspyserver import create_tus_router

folder, port = sys.argv[1:]
app = FastAPI()
app.include_router(create_tus_router(prefix="files", files_dir=folder))


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


uvicorn.run(app, port=int(port), log_level="error")
