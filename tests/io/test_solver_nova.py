from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from solver_fakes import make_request, star_list, true_wcs

from zemosaic_core.errors import Cancelled
from zemosaic_io.solvers.nova import NovaSolver


class Service:
    """A small astrometry.net on this machine; it remembers what it was sent."""

    def __init__(self):
        self.sent = {}
        self.job_states = ["solving", "success"]
        self.wcs = b""
        self.refuse = ""
        self.garbage = False
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                name = self.path.rsplit("/", 1)[-1]
                if self.headers["Content-Type"].startswith("multipart"):
                    mark = self.headers["Content-Type"].split("boundary=")[1].encode()
                    parts = [p.split(b"\r\n\r\n", 1) for p in body.split(b"--" + mark)[1:-1]]
                    service.sent["file"] = parts[1][1][: -len(b"\r\n")]
                    text = parts[0][1].decode().strip()
                else:
                    text = parse_qs(body.decode())["request-json"][0]
                service.sent[name] = json.loads(text)
                if service.refuse:
                    return self.reply({"status": "error", "errormessage": service.refuse})
                return self.reply({"status": "success", "session": "s1", "subid": 7})

            def do_GET(self):
                if self.path == "/api/submissions/7":
                    return self.reply({"jobs": [None] if len(service.job_states) > 1 else [None, 9]})
                if self.path == "/api/jobs/9":
                    return self.reply({"status": service.job_states[0]})
                if self.path == "/wcs_file/9":
                    return self.reply(service.wcs)
                return self.send_error(404)

            def reply(self, content):
                if len(service.job_states) > 1 and self.command == "GET":
                    service.job_states.pop(0)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                data = b"<html>busy</html>" if service.garbage else data
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def answer(self, wcs):
        header = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)])
        header.update(wcs.to_header())
        self.wcs = header.tostring(padding=True).encode("ascii")


@pytest.fixture
def service():
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


def stars():
    rng = np.random.default_rng(0)
    return star_list(rng.random(50) * 60, rng.random(50) * 80)


def test_star_list_goes_out_and_a_wcs_comes_back(tmp_path, service):
    wcs = true_wcs((80, 60))
    service.answer(wcs)
    solver = NovaSolver("key", service.url + "/api/", poll_s=0.01)
    request = make_request(tmp_path, stars=stars(), image_provider=None)
    outcome = solver.solve(request)
    assert (outcome.ok, outcome.solver) == (True, "NOVA")
    found = WCS(fits.Header(outcome.wcs_cards))
    np.testing.assert_allclose(found.all_pix2world(3, 7, 0), wcs.all_pix2world(3, 7, 0), atol=1e-10)
    sent = service.sent["upload"]
    assert service.sent["login"] == {"apikey": "key"}
    assert (sent["session"], sent["publicly_visible"]) == ("s1", "n")
    np.testing.assert_allclose(sent["x"], request.stars.x + 1, atol=1e-3)
    assert (sent["image_width"], sent["image_height"]) == (60, 80)
    assert (sent["scale_est"], sent["scale_units"], sent["scale_type"]) == (2.4, "arcsecperpix", "ev")
    assert (sent["center_ra"], sent["center_dec"], sent["radius"]) == (193.0, 41.0, 3.0)
    assert "file" not in service.sent


def test_own_server_gets_a_picture_and_the_answer_is_for_the_full_frame(tmp_path, service):
    shape = (2400, 2000)
    wcs = true_wcs(shape)
    small = wcs.deepcopy()
    small.wcs.crpix = (wcs.wcs.crpix - 1 - 1.0) / 2 + 1
    small.wcs.cd = wcs.wcs.cd * 2
    service.answer(small)
    solver = NovaSolver("any", service.url, name="ANSVR", send_stars=False, poll_s=0.01)
    image = np.full((2399, 1999), 1000.0, np.float32)
    outcome = solver.solve(make_request(tmp_path, shape, image, (0.5, 0.5), stars=stars()))
    assert (outcome.ok, outcome.solver) == (True, "ANSVR")
    found = WCS(fits.Header(outcome.wcs_cards))
    np.testing.assert_allclose(found.all_pix2world(3, 7, 0), wcs.all_pix2world(3, 7, 0), atol=1e-10)
    (tmp_path / "got.fits").write_bytes(service.sent["file"])
    assert fits.getdata(tmp_path / "got.fits").shape == (1199, 999)
    assert service.sent["upload"]["scale_est"] == 4.8
    assert "x" not in service.sent["upload"]


def test_no_solution(tmp_path, service):
    service.job_states = ["failure"]
    outcome = NovaSolver("key", service.url, poll_s=0.01).solve(make_request(tmp_path, stars=stars()))
    assert (outcome.kind, outcome.key) == ("no_solution", "solver_no_solution")


def test_refused_key_is_not_tried_again(tmp_path, service):
    service.refuse = "bad apikey"
    outcome = NovaSolver("key", service.url).solve(make_request(tmp_path, stars=stars()))
    assert (outcome.kind, outcome.key, outcome.values["reason"]) == (
        "unavailable",
        "solver_service_refused",
        "bad apikey",
    )


def test_network_trouble_is_a_crash_that_may_be_repeated(tmp_path, service):
    service.garbage = True
    assert NovaSolver("key", service.url).solve(make_request(tmp_path, stars=stars())).key == "solver_network"
    nobody = NovaSolver("key", "http://127.0.0.1:9")
    outcome = nobody.solve(make_request(tmp_path, stars=stars()))
    assert (outcome.kind, outcome.key) == ("crash", "solver_network")


def test_timeout_and_cancel(tmp_path, service, monkeypatch):
    service.job_states = ["solving"]
    monkeypatch.setattr("zemosaic_io.solvers.nova._MIN_TIMEOUT_S", 0.2)
    solver = NovaSolver("key", service.url, poll_s=0.01)
    outcome = solver.solve(make_request(tmp_path, stars=stars(), timeout_s=0.2))
    assert (outcome.kind, outcome.key) == ("timeout", "solver_timeout")
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(Cancelled):
        solver.solve(make_request(tmp_path, stars=stars(), timeout_s=30), cancel)


def test_availability():
    assert NovaSolver("key").find().ok
    assert NovaSolver(" ").find().key == "solver_no_api_key"
    assert NovaSolver("key", "ftp://x").find().key == "solver_not_found"


class Hostile:
    """A server that answers everything in one hostile way."""

    def __init__(self, kind):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if kind == "redirect":
                    self.send_response(302)
                    self.send_header("Location", "file:///etc/hostname")
                    self.end_headers()
                    return
                self.send_response(200)
                if kind == "endless_headers":
                    return self.drip(b"X")
                self.end_headers()
                if kind == "trickle":
                    return self.drip(b" ")
                if kind == "huge":
                    return self.flood()
                self.wfile.write({
                    "list": b"[1, 2]", "nothing": b"{}", "deep": b"[" * 200_000, "half": b'{"status": "succ',
                    "bytes": bytes(range(256)),
                    "no_number": b'{"status": "success", "session": "s", "subid": "abc"}',
                    "no_jobs": b'{"status": "success", "session": "s", "subid": 5, "jobs": 7}',
                    "odd_jobs": b'{"status": "success", "session": "s", "subid": 5, "jobs": [{"a": 1}]}',
                    "no_wcs": b'{"status": "success", "session": "s", "subid": 5, "jobs": [7]}',
                }[kind])  # fmt: skip
                return None

            do_GET = do_POST = answer

            def drip(self, piece):
                try:
                    while not stopped.wait(0.02):
                        self.wfile.write(piece)
                        self.wfile.flush()
                except OSError:
                    gone.set()

            def flood(self):
                try:
                    while not stopped.is_set():
                        self.wfile.write(bytes(1 << 20))
                except OSError:
                    gone.set()

            def log_message(self, *_):
                pass

        stopped, gone = threading.Event(), threading.Event()
        self.stopped, self.gone = stopped, gone
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def close(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hostile(request):
    made = Hostile(request.param)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("hostile", "kind"),
    [
        ("list", "unavailable"),
        ("nothing", "unavailable"),
        ("deep", "unavailable"),
        ("half", "crash"),
        ("bytes", "crash"),
        ("redirect", "crash"),
        ("no_number", "unavailable"),
        ("no_jobs", "unavailable"),
        ("odd_jobs", "unavailable"),
        ("no_wcs", "no_solution"),
        ("huge", "crash"),
    ],
    indirect=["hostile"],
)
def test_answers_that_make_no_sense_are_no_solution(tmp_path, hostile, kind):
    solver = NovaSolver("key", hostile.url, poll_s=0.01)
    outcome = solver.solve(make_request(tmp_path, stars=stars()))
    assert (outcome.ok, outcome.kind) == (False, kind)
    assert len(str(outcome.values.get("reason", ""))) < 300


@pytest.mark.parametrize("hostile", ["trickle", "endless_headers"], indirect=True)
@pytest.mark.parametrize("how", ["limit", "cancel"])
def test_an_answer_that_never_ends_is_not_waited_for(tmp_path, hostile, monkeypatch, how):
    solver, cancel = NovaSolver("key", hostile.url), threading.Event()
    if how == "limit":
        monkeypatch.setattr("zemosaic_io.solvers.nova._MIN_TIMEOUT_S", 0.3)
        assert solver.solve(make_request(tmp_path, stars=stars(), timeout_s=0.3)).kind == "timeout"
    else:
        threading.Timer(0.2, cancel.set).start()
        with pytest.raises(Cancelled):
            solver.solve(make_request(tmp_path, stars=stars()), cancel)
    # The connection is closed: nobody goes on reading.
    assert hostile.gone.wait(20)
