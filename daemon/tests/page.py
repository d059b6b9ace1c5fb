"""Reads the daemon's page as a browser shows it.

page.py BROWSER URL ANSWERS [FOLDER]

Opens the page in a headless browser at two widths and in both colour schemes, and lets it take ANSWERS answers each time. Prints one JSON
object a view: {"width", "scheme", "shown": [{"uptime_ms", "values": {path: text}}], "errors": [...], "overflow": pixels by which the page is
wider than the window, "paper", "ink": colours, "unnamed": elements that a reader hears nothing of, "cut": sections that
are wider than their place, "requests": addresses asked for, "answers": what
/stats said each time, as the browser received it}. With FOLDER, a picture of each view is left there.
Standard library only; the browser is driven over its debugging pipe.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time

VIEWS = [(390, 844, "light"), (390, 844, "dark"), (1280, 900, "light"), (1280, 900, "dark")]
LIMIT_S = 120
# The figures of one answer are read in one go, between two of the page's own turns.
READ = """(() => {
  const values = {};
  for (const place of document.querySelectorAll("[data-path]")) values[place.dataset.path + " " + place.dataset.form] = place.textContent;
  return { uptime_ms: Number(document.documentElement.dataset.shown || -1), values };
})()"""
LOOK = """(() => {
  const style = getComputedStyle(document.body);
  const named = (it) => it.getAttribute("aria-hidden") === "true" || it.hasAttribute("aria-label")
    || (it.getAttribute("aria-labelledby") || "").split(" ").every((id) => id && document.getElementById(id)?.textContent.trim());
  return {
    cut: [...document.querySelectorAll("section")].filter((it) => it.scrollWidth > it.clientWidth).map((it) => it.getAttribute("aria-labelledby")),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    paper: style.backgroundColor, ink: style.color,
    bars: document.querySelectorAll("#history rect").length,
    unnamed: [...document.querySelectorAll("svg, section")].filter((it) => !named(it)).map((it) => it.outerHTML.slice(0, 80)),
  };
})()"""


class Browser:
    """A browser at the other end of two pipes: messages are JSON, each ended by a zero byte."""

    def __init__(self, program, profile):
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # The browser reads from descriptor 3 and writes to 4. Ours first move out of their way.
        pairs = [os.dup(fd) for fd in (theirs_in, theirs_out)]
        flags = ["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-extensions",
                 "--disable-background-networking", "--disable-dev-shm-usage", "--no-proxy-server", f"--user-data-dir={profile}"]
        if os.geteuid() == 0:
            flags.append("--no-sandbox")
        command = f'exec "$0" "$@" 3<&{pairs[0]} 4>&{pairs[1]}'
        self.process = subprocess.Popen(["bash", "-c", command, program, *flags, "about:blank"], pass_fds=pairs,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (theirs_in, theirs_out, *pairs):
            os.close(fd)
        self.source, self.target = os.fdopen(ours_in, "rb", 0), os.fdopen(ours_out, "wb", 0)
        self.number, self.rest, self.events = 0, b"", []

    def message(self):
        while b"\0" not in self.rest:
            more = self.source.read(65536)
            if not more:
                raise SystemExit("the browser has ended")
            self.rest += more
        line, self.rest = self.rest.split(b"\0", 1)
        return json.loads(line)

    def call(self, method, session=None, **params):
        self.number += 1
        request = {"id": self.number, "method": method, "params": params}
        if session:
            request["sessionId"] = session
        self.target.write(json.dumps(request).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise SystemExit(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)

    def value(self, session, expression):
        return self.call("Runtime.evaluate", session, expression=expression, returnByValue=True)["result"].get("value")

    def close(self):
        try:
            self.call("Browser.close")
        except (SystemExit, OSError):
            pass
        self.process.wait(20)


def errors(events):
    found = []
    for event in events:
        params = event.get("params", {})
        if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            found.append(str(params["args"]))
        elif event["method"] == "Runtime.exceptionThrown":
            found.append(str(params["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            found.append(params["entry"]["text"])
    return found


def answers_of(browser, session, own):
    """What /stats said, by its uptime."""
    asked = {event["params"]["requestId"] for event in own
             if event["method"] == "Network.responseReceived" and event["params"]["response"]["url"].endswith("/stats")}
    ended = [event["params"]["requestId"] for event in own if event["method"] == "Network.loadingFinished"]
    bodies = (browser.call("Network.getResponseBody", session, requestId=request)["body"] for request in ended if request in asked)
    return {answer["uptime_ms"]: answer for answer in map(json.loads, bodies)}


def picture(browser, session, path):
    data = browser.call("Page.captureScreenshot", session, captureBeyondViewport=True)["data"]
    with open(path, "wb") as file:
        file.write(base64.b64decode(data))


def view(browser, url, width, height, scheme, answers, folder):
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    browser.events = []
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.call(f"{domain}.enable", session)
    browser.call("Emulation.setDeviceMetricsOverride", session, width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    browser.call("Emulation.setEmulatedMedia", session, features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Page.navigate", session, url=url)
    shown, until = {}, time.monotonic() + LIMIT_S
    while len(shown) < answers and time.monotonic() < until:
        read = browser.value(session, READ)
        if read and read["uptime_ms"] >= 0:
            shown[read["uptime_ms"]] = read
        time.sleep(0.2)
    look = browser.value(session, LOOK)
    own = [event for event in browser.events if event.get("sessionId") == session]
    asked = [event["params"]["request"]["url"] for event in own if event["method"] == "Network.requestWillBeSent"]
    said = answers_of(browser, session, own)
    if folder:
        picture(browser, session, os.path.join(folder, f"{width}-{scheme}.png"))
    browser.call("Target.closeTarget", targetId=target)
    return {"answers": said, "width": width, "scheme": scheme, "shown": list(shown.values()), "errors": errors(own), "requests": sorted(set(asked)), **look}


def main():
    program, url, answers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    folder = sys.argv[4] if len(sys.argv) > 4 else None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            for width, height, scheme in VIEWS:
                print(json.dumps(view(browser, url, width, height, scheme, answers, folder)))
        finally:
            browser.close()


main()
