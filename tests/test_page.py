"""The page in a real browser: its numbers are Python's, and every control serves pointer, keyboard and screen reader."""

import json
import lzma
import math
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from torch import nn

import proxflow
from proxflow import inverse, models, page
from proxflow.cli import main
from proxflow.models.onnx import checksum
from proxflow.random import SampleStreams

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
CLOSE = {"atol": 1e-4, "rtol": 0}

try:
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select, WebDriverWait
except ImportError:
    webdriver = None

in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and webdriver),
    reason="needs Chromium, its driver and selenium: apt-get install -y chromium chromium-driver",
)


# Files and server ---------------------------------------------------------------------------------------------------


def test_the_graphs_of_the_page_are_those_of_the_shipped_models():
    known = json.loads((page.FILES / "models" / "models.json").read_text())
    assert sorted(known) == models.shipped_models()
    for name, told in known.items():
        assert told["weights"] == checksum(proxflow.load(name).predictor), f"{name}: run python -m tools.page"
        assert told["flow"]["divergence"]["kind"] == "w2"
        assert (page.FILES / "models" / f"{name}.onnx.xz").is_file()


def test_the_page_is_small_and_needs_nothing_from_elsewhere():
    assert sum(path.stat().st_size for path in page.FILES.rglob("*") if path.is_file()) < 12e6
    own = [path for path in page.FILES.iterdir() if path.suffix in (".js", ".html", ".css")]
    for path in own:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text.replace("http-equiv", ""), path
    html = (page.FILES / "index.html").read_text(encoding="utf-8")
    assert f'content="{page.POLICY}"' in html


def test_export_writes_what_any_host_serves(tmp_path, capsys):
    assert main(["page", "--export", str(tmp_path / "play")]) == 0
    assert "index.html" in capsys.readouterr().out
    written = {
        path.relative_to(tmp_path / "play").as_posix() for path in (tmp_path / "play").rglob("*") if path.is_file()
    }
    assert written == set(page.pages())
    assert not any(name.endswith(".xz") for name in written)
    assert (tmp_path / "play" / "ort" / "ort-wasm-simd-threaded.wasm").read_bytes()[:4] == b"\0asm"
    assert main(["page", "--export", str(tmp_path / "play"), "--port", "80"]) == 2
    assert main(["page", "--port", "70000"]) == 2


def test_the_server_serves_the_page_alone_and_on_the_loopback_interface_alone(served, capsys):
    assert served.server_address[0] == "127.0.0.1"
    base = f"http://127.0.0.1:{served.server_port}"
    with urlopen(f"{base}/") as answer:
        assert answer.headers["Content-Security-Policy"] == page.POLICY
        assert "Set-Cookie" not in answer.headers
        assert b"proxflow" in answer.read()
    for path in ("/nonesuch", "/../__init__.py", "/models/../../__init__.py", "//etc/passwd"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(f"{base}{path}")
    with socket.create_connection(served.server_address) as gone:  # closed before the answer
        gone.sendall(b"GET /ort/ort-wasm-simd-threaded.wasm HTTP/1.1\r\n\r\n")
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with urlopen(f"{base}/icon.svg") as answer:
        assert answer.headers["Content-Type"].startswith("image/svg+xml")
    assert capsys.readouterr().err == ""
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(proxflow.errors.OutputError, match="give another"):
        page.server(taken.getsockname()[1])


def test_the_command_prints_its_address_and_ends_when_interrupted():
    command = [sys.executable, "-m", "proxflow.cli", "page"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background had interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        line = running.stdout.readline()
        assert line.startswith("http://127.0.0.1:")
        with urlopen(line.split()[0]) as answer:
            assert answer.status == 200
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=60)[1] == ""
        assert running.returncode == 0


# The browser --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served():
    with page.server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def chromium(served):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
            "disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1280,900",
            f"user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        driver.set_page_load_timeout(60)
        driver.set_script_timeout(120)
        try:
            yield driver
        finally:
            driver.quit()


@pytest.fixture
def browser(chromium, served):
    """The page, opened anew; after the test, nothing was wrong and nothing was asked of another machine."""
    base = f"http://127.0.0.1:{served.server_port}/"
    yield open_at(chromium, base)
    complaints = [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert complaints == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    own = (base, "data:", "blob:", "about:", "chrome:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert chromium.get_cookies() == []
    assert chromium.execute_script("return localStorage.length + sessionStorage.length") == 0


def open_at(driver, address, width=1280, scheme="light", motion="no-preference"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    told = {"features": [{"name": name, "value": value} for name, value in features.items()]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", told)
    driver.get(address)
    said(driver, "draw", "Drew 4 digits")
    return driver


def find(driver, selector):
    return driver.find_element(By.CSS_SELECTOR, selector)


def said(driver, section, words):
    """Wait until a section's status says so, of what is drawn, not of what is being drawn."""
    status = find(driver, f"#{section} .status")
    try:
        WebDriverWait(driver, 60, 0.05).until(lambda _: words in status.text and "Drawing" not in status.text)
    except Exception as error:
        raise AssertionError(f"#{section} says {status.text!r}, not {words!r}") from error


def see(driver, section):
    """Bring a section into view, which draws it the first time."""
    driver.execute_script(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
    if section not in ("draw", "paths"):
        said(driver, section, "Drew")


def cheaply(driver, nfe):
    """Let the sections that were not seen yet spend so many evaluations when they are."""
    driver.execute_script(
        "document.querySelectorAll('section:not(#draw) [name=nfe]').forEach((field) => (field.value = arguments[0]))",
        nfe,
    )


def choose(driver, selector, value):
    """Set a field as a user does: the value, then the events of input and change."""
    script = """
        arguments[0].value = arguments[1];
        for (const name of ['input', 'change']) arguments[0].dispatchEvent(new Event(name, { bubbles: true }));
    """
    driver.execute_script(script, find(driver, selector), value)


def label_of(driver, selector):
    return find(driver, selector).get_attribute("aria-label")


def computed(driver, body, *given):
    """Return what a module script gives back; ``P`` are the exports of proximal.js and ``given`` the arguments."""
    script = """
        const done = arguments[arguments.length - 1];
        const given = [...arguments].slice(0, -1);
        import('./proximal.js').then(async (P) => done({ found: await (async () => { BODY })() }))
            .catch((error) => done({ error: String(error) }));
    """
    answer = driver.execute_async_script(script.replace("BODY", body), *given)
    assert "error" not in answer, answer["error"]
    return answer["found"]


# Its numbers --------------------------------------------------------------------------------------------------------


@in_browser
def test_noise_is_that_of_the_library(browser):
    body = """
        const streams = new P.Streams(given[0], 3, given[1]);
        return [5, 8, 784].map((size) => [...streams.normal(size)]);
    """
    for seed, first in ((0, 0), (12345, 7), (999999, 1000)):
        found = computed(browser, body, seed, first)
        streams = SampleStreams(seed, torch.arange(first, first + 3))
        for size, numbers in zip((5, 8, 784), found, strict=True):
            expected = streams.normal(torch.Size([3, size]), torch.float32)
            torch.testing.assert_close(torch.tensor(numbers).reshape(3, size), expected, atol=2e-5, rtol=0)


@in_browser
def test_steps_are_those_of_the_library(browser):
    source = torch.Generator().manual_seed(0)
    members = {
        "w2": proxflow.Wasserstein2(), "kl": proxflow.KL(), "reverse-kl": proxflow.ReverseKL(),
        "fisher-rao": proxflow.FisherRao(),
    }  # fmt: skip
    m, n = torch.randn(2, 40, generator=source, dtype=torch.float64)
    s, r = (2 * torch.randn(2, 40, generator=source, dtype=torch.float64)).exp()
    m[0], s[0] = n[0], r[0]  # no way at all
    f = torch.linspace(0, 1, 40, dtype=torch.float64)
    cases = torch.stack([m, s, n, r, f], 1).tolist()
    p, q = torch.rand(2, 40, 3, generator=source, dtype=torch.float64).pow(3).add(1e-3)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    for name, divergence in members.items():
        one, other = (proxflow.DiagonalGaussian(a[:, None], b[:, None]) for a, b in ((m, s), (n, r)))
        moved = divergence.interpolate(one, other, f)
        found = torch.tensor(computed(browser, "return given[0].map((c) => P.gaussian[given[1]](...c))", cases, name))
        expected = torch.cat([moved.mean, moved.std], 1)
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-6)
        if name == "w2":
            continue
        classes = divergence.interpolate(*map(proxflow.Categorical.from_probs, (p, q)), f).probs
        body = "return given[0].map((p, k) => P.categorical[given[3]](p, given[1][k], given[2][k]))"
        found = torch.tensor(computed(browser, body, p.tolist(), q.tolist(), f.tolist(), name))
        torch.testing.assert_close(found.double(), classes, atol=1e-6, rtol=0)


class OfOtherPath(nn.Module):
    """The predictor of a BFN by the network of a GPFN: of noisy data with as much noise both predict the same."""

    def __init__(self, model, flow):
        super().__init__()
        self.denoise, self.path = proxflow.Denoiser(model.predictor, model.flow), flow.path

    def forward(self, belief, t):
        a, b = (c[:, None, None, None] for c in self.path.coefficients(t.double()))
        noisy = torch.where(a > 0, belief.mean / a.clamp_min(1e-12), 0.0).float()
        sigma = torch.where(a > 0, b / a.clamp_min(1e-12), torch.inf)
        return proxflow.DiagonalGaussian(self.denoise(noisy, sigma), 0.0)


def half_known():
    known = torch.zeros(1, 28, 28, dtype=torch.bool)
    known[:, :14] = True
    return known


def of_bfn(sampler, nfe):
    model = proxflow.load("mnist")
    flow = proxflow.BFN(sigma1=0.25 / math.hypot(1, 0.25))
    return proxflow.sample(OfOtherPath(model, flow), flow, (4, 1, 28, 28), nfe=nfe, sampler=sampler, seed=2)


def of_half(nfe):
    model = proxflow.load("mnist")
    picture = model.sample(1, nfe=10, seed=8, decode=False)
    posterior = proxflow.Posterior(model.predictor, inverse.Mask(half_known()), picture, noise=0.05)
    told = {"known": half_known().flatten().tolist(), "values": picture.flatten().tolist(), "noise": 0.05}
    return told, proxflow.sample(posterior, model.flow, (4, 1, 28, 28), nfe=nfe, seed=2)


@in_browser
def test_samples_are_those_of_the_library(browser):
    """For the same seed, by the page's own worker: every model, sampler, guidance, the other flow, and half a digit."""
    cases = []
    for name, sampler, nfe in (
        ("mnist", "deterministic", 5), ("mnist", "stochastic", 4), ("mnist", "marginal", 4), ("mnist", "multistep2", 5),
        ("mnist-few", "deterministic", 1), ("mnist-classes", "deterministic", 3), ("mnist-classes-few", "deterministic", 1),
        ("fashion-mnist-classes", "deterministic", 2),
    ):  # fmt: skip
        drawn = proxflow.load(name).sample(4, nfe=nfe, sampler=sampler, seed=2, decode=False)
        cases.append(({"model": name, "sampler": sampler, "nfe": nfe}, drawn))
    classes = torch.tensor([3, 0, 9, 7])
    led = proxflow.load("mnist-classes").sample(
        4, nfe=3, sampler="deterministic", seed=2, condition=classes, guidance=2.5, decode=False
    )
    asked = {"model": "mnist-classes", "sampler": "deterministic", "nfe": 3}
    cases.append(({**asked, "labels": classes.tolist(), "weight": 2.5}, led))
    for sampler in ("deterministic", "stochastic"):
        cases.append(({"model": "mnist", "flow": "bfn", "sampler": sampler, "nfe": 4}, of_bfn(sampler, 4)))
    observation, wholes = of_half(5)
    cases.append(({"model": "mnist", "sampler": "renewed", "nfe": 5, "observation": observation}, wholes))
    body = """
        const worker = new Worker('worker.js', { type: 'module' });
        const asked = (request, id) => new Promise((resolve, reject) => {
            let last;
            worker.onmessage = ({ data }) => {
                if (data.error) reject(new Error(data.error));
                if (data.step) last = data.step;
                if (data.done) resolve([...last.target]);
            };
            worker.postMessage({ id, section: 'test', request: { ...request, number: 4, seed: 2 } });
        });
        const found = [];
        for (const request of given[0]) found.push(await asked(request, found.length));
        worker.terminate();
        return found;
    """
    found = computed(browser, body, [request for request, _ in cases])
    for numbers, (request, expected) in zip(found, cases, strict=True):
        gap = (torch.tensor(numbers).reshape(expected.shape) - expected).abs().max()
        assert gap <= CLOSE["atol"], f"{request['model']} {request['sampler']}: {gap:.2g} apart"


# Its controls -------------------------------------------------------------------------------------------------------


@in_browser
def test_drawing_has_controls_that_all_do_something(browser):
    at = find(browser, "#draw .at")
    assert "4 digits at evaluation 10 of 10" in label_of(browser, "#draw canvas")
    Select(find(browser, "#draw [name=number]")).select_by_visible_text("1")
    said(browser, "draw", "Drew 1 digit with 10 evaluations of mnist")
    choose(browser, "#draw [name=nfe]", 3)
    said(browser, "draw", "Drew 1 digit with 3 evaluations of mnist in")
    Select(find(browser, "#draw [name=model]")).select_by_value("mnist-classes")
    said(browser, "draw", "with 3 evaluations of mnist-classes")
    Select(find(browser, "#draw [name=model]")).select_by_value("mnist-few")  # which is for one evaluation
    said(browser, "draw", "with 1 evaluation of mnist-few")
    Select(find(browser, "#draw [name=model]")).select_by_value("mnist")
    said(browser, "draw", "with 10 evaluations of mnist in")
    choose(browser, "#draw [name=nfe]", 3)
    for sampler in ("multistep2", "stochastic", "marginal"):
        said(browser, "draw", "with 3 evaluations of mnist in")
        before = picture(browser, "#draw figure:nth-child(2) canvas")
        Select(find(browser, "#draw [name=sampler]")).select_by_value(sampler)
        said(browser, "draw", "with 3 evaluations of mnist in")
        assert picture(browser, "#draw figure:nth-child(2) canvas") != before
    choose(browser, "#draw .at", 1)
    assert "evaluation 1 of 3" in at.get_attribute("aria-valuetext")
    assert "0 % of the way, σ = 1.00" in find(browser, "#draw-at").text
    find(browser, "#draw .play").click()
    WebDriverWait(browser, 20, 0.05).until(lambda _: at.get_attribute("value") == "3")
    assert "this target is the sample" in find(browser, "#draw-at").text
    seed = find(browser, "#draw [name=seed]").get_attribute("value")
    find(browser, "#draw .again").click()
    assert find(browser, "#draw [name=seed]").get_attribute("value") != seed
    choose(browser, "#draw [name=seed]", "0")
    find(browser, "#draw [type=submit]").click()
    choose(browser, "#draw [name=nfe]", 50)
    choose(browser, "#draw [name=nfe]", 1)  # takes the place of what runs
    said(browser, "draw", "with 1 evaluation of")


@in_browser
def test_while_it_draws_the_page_says_how_far_it_is_and_what_is_old(browser):
    """Every state on the way is recorded within the page, as a poll from here would miss some."""
    cheaply(browser, 4)
    see(browser, "guide")
    browser.execute_script("""
        window.met = { draw: [], guide: [] };
        for (const name of ['draw', 'guide']) {
            const part = document.getElementById(name);
            const state = () => [part.querySelector('.status').textContent, part.querySelector('.far').textContent,
                name === 'draw' ? part.querySelector('#draw-at').textContent : part.querySelector('.weight').textContent,
                part.querySelector('figure:last-child').matches('.outdated')];
            new MutationObserver(() => window.met[name].push(state()))
                .observe(part, { subtree: true, childList: true, characterData: true, attributes: true });
        }
    """)
    choose(browser, "#guide [name=weight]", 4)
    said(browser, "guide", "weights 1 and 4, with 4 evaluations each")
    choose(browser, "#draw [name=nfe]", 6)
    said(browser, "draw", "Drew 4 digits with 6 evaluations of mnist")
    draw, guide = browser.execute_script("return [window.met.draw, window.met.guide]")
    spoken = list(dict.fromkeys(status for status, *_ in draw))
    assert spoken[0] == "Drawing 4 digits with 6 evaluations of mnist …"
    assert len(spoken) == 2  # one message at the beginning, one at the end
    assert {far for _, far, *_ in draw} >= {"0 of 6 evaluations", "3 of 6 evaluations"}
    shown = list(dict.fromkeys(at for *_, at, _ in draw if at))
    # A step is shown once the next belief is known; with the last evaluation that are two.
    assert [at.split(":")[0] for at in shown] == [f"Evaluation {k} of 6" for k in (1, 2, 3, 4, 6)]
    assert ["this target is the sample" in at for at in shown] == [False] * 4 + [True]
    assert draw[0][3]
    assert not draw[-1][3]
    assert {old for *_, weight, old in guide if weight == "2.5"} == {True}  # the caption is that of what is shown
    assert guide[-1][2:] == ["4", False]
    assert find(browser, "#guide .far").text == ""


@in_browser
def test_seeds_that_are_none_are_said_to_be(browser):
    field = find(browser, "#draw [name=seed]")
    before = picture(browser, "#draw canvas")
    for given in ("1000000", "-1", "0.5", "e", ""):
        field.clear()
        field.send_keys(given, Keys.ENTER)
        assert "a whole number from 0 to 999999" in find(browser, "#draw .wrong").text
        assert field.get_attribute("aria-invalid") == "true"
    assert field.get_attribute("value") == ""
    assert picture(browser, "#draw canvas") == before
    field.send_keys("7", Keys.ENTER)
    assert find(browser, "#draw .wrong").text == ""
    said(browser, "draw", "Drew 4 digits")
    assert picture(browser, "#draw canvas") != before


def picture(driver, selector):
    return driver.execute_script("return arguments[0].toDataURL()", find(driver, selector))


@in_browser
def test_without_noise_all_samples_of_a_bfn_are_one_and_those_of_a_gpfn_are_not(browser):
    cheaply(browser, 4)
    see(browser, "compare")
    said(browser, "compare", "with 4 evaluations each")
    script = """
        const { data, width } = arguments[0].getContext('2d').getImageData(0, 0, arguments[0].width, 28);
        const row = (n) => JSON.stringify([...data].filter((_, k) => Math.floor((k / 4) % width / 29) === n
            && (k / 4) % width % 29 < 28));
        return new Set([0, 1, 2, 3, 4, 5, 6, 7].map(row)).size;
    """
    canvases = browser.find_elements(By.CSS_SELECTOR, "#compare canvas")
    different = [browser.execute_script(script, canvas) for canvas in canvases]
    assert different == [8, 1, 8]
    choose(browser, "#compare .at", 1)
    assert "targets of 8 digits at evaluation 1" in label_of(browser, "#compare canvas")
    find(browser, "#compare [name=targets]").click()
    assert "beliefs of 8 digits" in label_of(browser, "#compare canvas")
    find(browser, "#compare .play").click()
    WebDriverWait(browser, 20, 0.05).until(lambda _: find(browser, "#compare .at").get_attribute("value") == "4")
    find(browser, "#compare .again").click()
    find(browser, "#compare [type=submit]").click()
    said(browser, "compare", "Drew")


@in_browser
def test_class_weight_and_half_are_chosen(browser):
    cheaply(browser, 2)
    see(browser, "guide")
    before = picture(browser, "#guide figure:nth-child(2) canvas")
    choose(browser, "#guide [name=weight]", 1)
    said(browser, "guide", "weights 1 and 1,")
    plain, led = (picture(browser, f"#guide figure:nth-child({k}) canvas") for k in (1, 2))
    assert plain == led != before
    Select(find(browser, "#guide [name=class]")).select_by_visible_text("7")
    said(browser, "guide", "of the class 7")
    Select(find(browser, "#guide [name=class]")).select_by_value("none")
    said(browser, "guide", "of no class")
    find(browser, "#guide .again").click()
    find(browser, "#guide [type=submit]").click()
    see(browser, "restore")
    first = picture(browser, "#restore .views canvas")
    for half in ("lower", "left", "right", "upper"):
        Select(find(browser, "#restore [name=half]")).select_by_value(half)
        said(browser, "restore", f"of the {half} half, with 2 evaluations")
    choose(browser, "#restore [name=noise]", 0.3)
    find(browser, "#restore .example").click()
    WebDriverWait(browser, 60, 0.05).until(lambda _: picture(browser, "#restore .views canvas") != first)
    said(browser, "restore", "Drew")
    find(browser, "#restore .clear").click()
    said(browser, "restore", "Cleared")
    assert "outdated" in label_of(browser, "#restore .views canvas")
    find(browser, "#restore [type=submit]").click()
    said(browser, "restore", "blank is taken as known")
    assert "outdated" not in label_of(browser, "#restore .views canvas")
    pad = find(browser, "#pad")
    blank = picture(browser, "#pad")
    ActionChains(browser).move_to_element_with_offset(pad, -60, -90).click_and_hold().move_by_offset(
        100, 10
    ).release().perform()
    assert picture(browser, "#pad") != blank
    said(browser, "restore", "Drew eight completions")
    find(browser, "#restore [type=submit]").click()


@in_browser
def test_paths_bend_by_the_divergence_and_follow_their_ends(browser):
    see(browser, "paths")
    rows = "return [...document.querySelectorAll('#gaussians tbody tr')].map((row) => row.innerText.split('\\t'))"
    found = {name: (mean, std) for name, mean, std in browser.execute_script(rows)}
    assert found["Wasserstein-2"] == ("−0.05, 0.05", "0.57, 0.80")
    assert len(set(found.values())) == 4
    find(browser, "#paths [name=kl]").click()
    assert "KL" not in {name for name, *_ in browser.execute_script(rows)}
    choose(browser, "#paths .at", 1)
    assert {tuple(rest) for _, *rest in browser.execute_script(rows)} == {("1.50, 1.00", "0.25, 0.70")}
    choose(browser, "#paths .at", 0.9)
    find(browser, "#paths .play").click()
    WebDriverWait(browser, 20, 0.05).until(lambda _: find(browser, "#paths .at").get_attribute("value") == "1")
    find(browser, "#paths summary").click()
    choose(browser, "#paths .ends label:nth-child(8) input", 2)
    assert browser.execute_script(rows)[0][1].startswith("2.00")
    handle = find(browser, "#plane .handle[data-end=target]")
    ActionChains(browser).move_to_element(handle).click_and_hold().move_by_offset(-40, 30).release().perform()
    assert not browser.execute_script(rows)[0][1].startswith("2.00")
    classes = "return document.querySelector('#classes td').textContent"
    before = browser.execute_script(classes)
    handle = find(browser, "#simplex .handle[data-end=target]")
    ActionChains(browser).move_to_element(handle).click_and_hold().move_by_offset(-20, 60).release().perform()
    assert browser.execute_script(classes) != before


@in_browser
def test_the_keyboard_alone_serves_everything(browser):
    """Tab reaches every control, each shows that it has the focus, and keys set what pointers do."""
    cheaply(browser, 1)
    wanted = browser.execute_script("""
        return [...document.querySelectorAll('a, button, input, select, summary, [tabindex="0"]')]
            .filter((e) => e.checkVisibility()).length
    """)
    reached, outlined = set(), 0
    browser.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(wanted + 5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        mark, shows = browser.execute_script("""
            const e = document.activeElement;
            e.dataset.met ??= Math.random();
            return [e === document.body ? '' : e.dataset.met, getComputedStyle(e).outlineStyle !== 'none'];
        """)
        if mark:
            reached.add(mark)
            outlined += shows
        elif reached:
            break
    assert len(reached) == wanted
    assert outlined >= wanted
    slider = find(browser, "#draw .at")
    browser.execute_script("arguments[0].focus()", slider)
    ActionChains(browser).send_keys(Keys.HOME).perform()
    assert "evaluation 1 of 10" in slider.get_attribute("aria-valuetext")
    ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
    assert "evaluation 2 of 10" in slider.get_attribute("aria-valuetext")
    see(browser, "restore")
    browser.execute_script("document.querySelector('#restore .clear').focus()")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    said(browser, "restore", "Cleared")
    browser.execute_script("document.getElementById('pad').focus()")
    ActionChains(browser).send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP).perform()
    said(browser, "restore", "row 7, column 14: empty")
    blank = picture(browser, "#pad")
    ActionChains(browser).send_keys(" ").key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    assert picture(browser, "#pad") != blank
    said(browser, "restore", "Drew eight completions")
    ActionChains(browser).send_keys(Keys.BACKSPACE).perform()
    browser.execute_script("document.getElementById('scheme').focus()")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert find(browser, "#scheme").get_attribute("aria-pressed") == "true"


AXE = lzma.decompress((Path(__file__).parent / "axe" / "axe.min.js.xz").read_bytes()).decode()


@in_browser
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1280, "light"), (1280, "dark")])
def test_both_schemes_and_both_widths_are_accessible_and_nothing_sticks_out(browser, served, width, scheme):
    open_at(browser, f"http://127.0.0.1:{served.server_port}/", width, scheme, "reduce")
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == (scheme == "dark")
    find(browser, "#paths summary").click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = """
        return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && !e.closest('.skip')
            && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 80));
    """
    assert browser.execute_script(wide) == []
    browser.execute_script(AXE)
    found = browser.execute_async_script(
        "axe.run().then((r) => arguments[0](r.violations.map((v) => [v.id, v.nodes[0].html])))"
    )
    assert found == []


@in_browser
def test_written_files_draw_from_a_folder_of_any_host(chromium, tmp_path):
    """From a host that sends no headers of ours, in a folder below its root."""
    page.write(tmp_path / "a" / "play")

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        open_at(chromium, f"http://127.0.0.1:{server.server_port}/a/play/")
        server.shutdown()
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
    chromium.get_log("performance")
