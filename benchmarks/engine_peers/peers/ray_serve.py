"""Ray Serve: deployments that call each other by their handles. Nothing is recorded."""

import os
from importlib.metadata import version
from pathlib import Path

import measure
import ray
from ray import serve

CHUNKS = 2000


@serve.deployment(max_ongoing_requests=1000)
class Step:
    def __init__(self, after: serve.handle.DeploymentHandle | None = None) -> None:
        self._after = after

    async def __call__(self, text: str) -> str:
        return text if self._after is None else await self._after.remote(text)

    async def stream(self, count: int):
        for _ in range(count):
            yield measure.WORD


async def program(rounds: int, seconds: float, folder: Path) -> measure.Measured:
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else it writes a token into the user's home
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder))
    try:
        serve.start(http_options={"location": None})
        one = serve.run(Step.bind(), name="one", route_prefix=None)
        last = Step.options(name="last").bind()
        middle = Step.options(name="middle").bind(last)
        three = serve.run(Step.options(name="first").bind(middle), name="three", route_prefix=None)

        async def run(steps: int) -> str:
            return await (three if steps == 3 else one).remote(measure.WORD)

        found = await measure.measured(run, rounds, seconds)
        stream = one.options(method_name="stream", stream=True)
        found.chunks = await measure.chunk_rate(aiter(stream.remote(CHUNKS)))
    finally:
        serve.shutdown()
        ray.shutdown()
    found.version = version("ray")
    return found


if __name__ == "__main__":
    measure.main(program)
