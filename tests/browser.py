"""JupyterLab and Chromium for `test_browser.py`: started, spoken to, and ended for sure."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import matplotlib as mpl

PATIENCE = 180  # seconds until a wait is given up; none of them takes long when all is well

READY = """
const panel = window.jupyterapp?.shell.currentWidget;
return panel?.context?.isReady && panel.sessionContext.isReady
    && panel.sessionContext.session?.kernel?.status == 'idle';
"""

# What the page shows, of the outputs of the notebook.
LOOK = """
const all = (selector, node = document) => [...node.querySelectorAll(selector)];
const texts = nodes => nodes.map(node => node.textContent.trim());
const outputs = all('.jp-CodeCell .jp-OutputArea-output');
const within = selector => outputs.flatMap(output => all(selector, output));
return {
    prompt: texts(all('.jp-CodeCell .jp-InputPrompt')).at(-1),
    texts: texts(outputs),
    heads: within('table.onecycle').map(table => texts(all('thead th', table))),
    tables: within('table.onecycle').map(
        table => all('tbody tr', table).map(row => texts(all('th, td', row)))),
    bars: within('progress, .widget-hprogress').map(bar => bar.outerHTML),
    pictures: within('img').map(
        img => img.src.startsWith('data:image/png') && img.complete && img.naturalWidth > 0),
    wrong: texts(all('[data-mime-type$=".stderr"], [data-mime-type$=".error"]')),
};
"""


def missing():
    """Name what these tests need and is not there."""
    programs = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return programs + [
        name for name in ("selenium", "jupyterlab", "ipywidgets") if not find_spec(name)
    ]


def until(condition, what):
    """Return the first true value of `condition()`."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE} seconds for {what}")
        time.sleep(0.05)
    return value


def environment(home):
    """The environment of a new user whose home is `home`, with matplotlib's font cache."""
    old = ("JUPYTER", "IPYTHON", "XDG_", "ONECYCLE_", "MPL")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(old)}
    fonts, temporary = home / "matplotlib", home / "tmp"
    fonts.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    for cache in Path(mpl.get_cachedir()).glob("fontlist-*.json"):
        shutil.copy(cache, fonts)
    kept |= {"HOME": str(home), "TMPDIR": str(temporary), "MPLCONFIGDIR": str(fonts)}
    return kept | {"OMP_NUM_THREADS": "1"}  # the browser needs a core too


@contextmanager
def chromium(home):
    """A headless Chromium that keeps its files in `home`, and a log of network and console."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for option in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1100,900"):
        options.add_argument("--" + option)
    options.add_argument(f"--user-data-dir={home / 'chromium'}")
    service = webdriver.ChromeService(shutil.which("chromedriver"), env=environment(home))
    driver = webdriver.Chrome(options, service)
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def jupyterlab(home, root):
    """A JupyterLab for the notebooks in `root`; yields the address and the token it gave itself."""
    settings = home / ".jupyter" / "lab" / "user-settings" / "@jupyterlab"
    _write(settings / "notebook-extension" / "tracker", windowingMode="none")  # all cells are there
    _write(settings / "apputils-extension" / "notification", fetchNews="false")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += ["--ip=127.0.0.1", f"--ServerApp.root_dir={root}"]
    command += ["--expose-app-in-browser", "--LabApp.extension_manager=readonly"]
    log = home / "jupyterlab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment(home), stdout=out, stderr=out)
    try:
        file = home / ".local" / "share" / "jupyter" / "runtime" / f"jpserver-{server.pid}.json"
        later = file.with_name(f"{file.stem}-open.html")  # written after the file, which is whole
        until(lambda: later.exists() or server.poll() is not None, "JupyterLab")
        assert server.poll() is None, log.read_text()
        yield json.loads(file.read_text())
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _write(path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".jupyterlab-settings").write_text(json.dumps(settings))


class Lab:
    """One notebook, opened in JupyterLab."""

    def __init__(self, driver, server, name):
        self.driver = driver
        self.address = f"{server['url']}lab/tree/{name}?reset&token={server['token']}"
        self.open()

    def open(self):
        """Load the page, and wait until the notebook and its kernel are ready."""
        self.driver.get(self.address)
        until(lambda: self.driver.execute_script(READY), "the notebook and its kernel")

    def start(self, command):
        """Start one of JupyterLab's commands; what comes of it is seen on the page."""
        self.driver.execute_script(f"window.jupyterapp.commands.execute('{command}')")

    def save(self):
        """Save, and wait until it is done."""
        script = "window.jupyterapp.commands.execute('docmanager:save').then(arguments[0])"
        self.driver.execute_async_script(script)

    def look(self, condition):
        """Return what the page shows as soon as the condition holds, or patience is over."""
        deadline = time.monotonic() + PATIENCE
        while not condition(page := self.driver.execute_script(LOOK)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return page


def shoot(driver, name):
    """Keep a picture of the whole page if ONECYCLE_SCREENSHOTS names a folder."""
    if folder := os.environ.get("ONECYCLE_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        driver.set_window_size(1100, 6000)
        driver.execute_script("document.querySelector('.jp-WindowedPanel-outer')?.scrollTo(0, 0)")
        driver.save_screenshot(str(Path(folder, f"{name}.png")))
        driver.set_window_size(1100, 900)


def requests(driver):
    """List what was asked of the network, or of the disk, since this was asked last."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    return [url for url in sent if not url.startswith("data:")]
