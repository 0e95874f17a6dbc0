"""A real browser at a real server: the page of the API, and EventSource on a run's events."""

from pathlib import Path

from tests.gateway.conftest import ECHO_FLOW, write_agent
from tests.support.browser import browser_page
from tests.support.server import up

FOLLOW = """
new Promise((resolve, reject) => {
  fetch("/api/v1/runs", {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify({flow: %s, inputs: {words: "from a page"}})})
  .then(answer => answer.json())
  .then(run => {
    const seen = [], source = new EventSource(`/api/v1/runs/${run.run_id}/events`);
    source.addEventListener("node_succeeded", event => seen.push(JSON.parse(event.data).node_id));
    source.addEventListener("run_finished", event => {
      seen.push(JSON.parse(event.data).payload.state);
    });
    // the server ends the answer; the reconnect gets 204, which closes an EventSource for good
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) resolve(seen); };
  }).catch(reject);
})
"""


async def test_the_page_of_the_api_works_without_a_network(tmp_path: Path):
    with up(tmp_path / "home") as server:
        async with browser_page(tmp_path / "profile") as page:
            await page.goto(f"{server.url}/docs")
            shown = await page.evaluate(
                "new Promise(done => { const look = () => {"
                " const found = [...document.querySelectorAll('summary code')]"
                ".map(code => code.textContent);"
                " found.length ? done(found) : requestAnimationFrame(look); }; look(); })"
            )
    assert "/api/v1/runs" in shown
    assert "/api/v1/streams/init" in shown


async def test_event_source_follows_a_run_and_stops_by_itself(tmp_path: Path):
    write_agent(tmp_path / "agents" / "echo")
    with up(tmp_path / "home", "--agents", tmp_path / "agents") as server:
        async with browser_page(tmp_path / "profile") as page:
            await page.goto(f"{server.url}/docs")
            flow = ECHO_FLOW.replace("\n", "\\n").join('""')
            seen = await page.evaluate(FOLLOW % flow)
    assert "echo" in seen
    assert seen[-1] == "succeeded"
