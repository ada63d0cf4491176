"""The web service of astrometry.net, at nova.astrometry.net or on a server of one's own (ANSVR).

Only star positions are sent when the server takes them; a picture otherwise. Submissions are private.
"""

from __future__ import annotations

import http.client
import json
import math
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zemosaic_io.solvers.astrometry_net import read_wcs_file
from zemosaic_io.solvers.base import (
    Availability,
    Cancel,
    SolveOutcome,
    SolveRequest,
    check_cancel,
    failed,
    is_plausible,
)
from zemosaic_io.solvers.images import prepare_image, wcs_to_full_frame, write_solver_image
from zemosaic_io.solvers.process import solver_folder
from zemosaic_io.solvers.web_request import fetch

__all__ = ["NOVA_URL", "NovaSolver"]

NOVA_URL = "https://nova.astrometry.net"
_MIN_STARS = 8
_MAX_STARS = 300
_POLL_S = 2.0
_REQUEST_TIMEOUT_S = 20.0
_MAX_REASON = 200
# A service that others share: a solve takes half a minute and up, whatever the limit for local programs is.
_MIN_TIMEOUT_S = 120.0


class _ServiceError(Exception):
    """The service answered, but with an error of its own."""


class NovaSolver:
    """astrometry.net's web API.

    Parameters
    ----------
    api_key : str
        Key of the user's account.
    url : str
        Address of the server.
    name : str
        Name in outcomes.
    send_stars : bool
        Send the star list; False sends a picture, for servers that only take files.
    poll_s : float
        Seconds between questions about the result.
    """

    def __init__(
        self,
        api_key: str,
        url: str = NOVA_URL,
        *,
        name: str = "NOVA",
        send_stars: bool = True,
        poll_s: float = _POLL_S,
    ) -> None:
        self.name = name
        self._key = api_key.strip()
        self._url = url.strip().rstrip("/").removesuffix("/api")
        self._send_stars = send_stars
        self._poll_s = poll_s

    def find(self) -> Availability:
        """Tell whether there is a key and an address; the network is not touched."""
        values = {"solver": self.name}
        if not self._key:
            return Availability(False, "no API key", self._url, key="solver_no_api_key", values=values)
        if urllib.parse.urlsplit(self._url).scheme not in ("http", "https"):
            return Availability(
                False, f"{self._url} is no web address", key="solver_not_found", values=values
            )
        return Availability(True, self._url, self._url, values=values)

    def identity(self) -> str:
        """Return '': it is asked over the network, by the computer of the run."""
        return ""

    def solve(self, request: SolveRequest, cancel: Cancel | None = None) -> SolveOutcome:
        """Solve one frame; see `Solver`. Slow: every step is a request over the network."""
        start = time.monotonic()
        found = self.find()
        if not found.ok:
            return failed(self.name, "unavailable", found.key)
        deadline = start + max(_MIN_TIMEOUT_S, request.timeout_s)
        try:
            outcome = self._run(request, _Line(deadline, cancel))
        except TimeoutError:
            outcome = failed(self.name, "timeout", "solver_timeout", limit_s=round(time.monotonic() - start))
        except _ServiceError as error:
            outcome = failed(self.name, "unavailable", "solver_service_refused", reason=str(error))
        except (OSError, http.client.HTTPException, ValueError) as error:
            # URLError is an OSError; a page instead of JSON is a ValueError.
            outcome = failed(self.name, "crash", "solver_network", reason=str(error))
        return replace(outcome, seconds=time.monotonic() - start)

    def _run(self, request: SolveRequest, line: _Line) -> SolveOutcome:
        session = _entry(self._api(line, "login", {"apikey": self._key}), "session")
        arguments = {**self._hints(request), "session": session}
        stars = request.stars
        geometry = (1, 0.0, 0.0)
        if self._send_stars and stars is not None and len(stars) >= _MIN_STARS:
            chosen = slice(0, _MAX_STARS)
            arguments["x"] = [round(float(x) + 1.0, 3) for x in stars.x[chosen]]
            arguments["y"] = [round(float(y) + 1.0, 3) for y in stars.y[chosen]]
            arguments["image_height"], arguments["image_width"] = request.shape_hw
            answer = self._api(line, "upload", arguments)
        elif request.image_provider is not None:
            # A megapixel is plenty for a blind solver and kind to the connection.
            image = prepare_image(request, max(1, round(min(request.shape_hw) / 1000)))
            geometry = (image.step, image.x0, image.y0)
            if "scale_est" in arguments:
                arguments["scale_est"] = arguments["scale_est"] * image.step
            with solver_folder(request.work_dir) as folder:
                write_solver_image(folder / "f.fits", image)
                answer = self._api(line, "upload", arguments, (folder / "f.fits").read_bytes())
        else:
            return failed(
                self.name, "too_few_stars", "solver_too_few_stars", stars=0 if stars is None else len(stars)
            )
        job = self._wait_for_job(_number(_entry(answer, "subid")), line)
        if job is None:
            return failed(self.name, "no_solution", "solver_no_solution")
        cards = self._wcs(line, job)
        full = None if cards is None else wcs_to_full_frame(cards, *geometry)
        if full is None or not is_plausible(full, request):
            return failed(self.name, "no_solution", "solver_implausible")
        return SolveOutcome(True, self.name, full, 0.0, values={"solver": self.name})

    @staticmethod
    def _hints(request: SolveRequest) -> dict[str, Any]:
        hints: dict[str, Any] = {
            "publicly_visible": "n",
            "allow_modifications": "n",
            "allow_commercial_use": "n",
            "tweak_order": 2,
            "crpix_center": True,
        }
        if request.scale_arcsec:
            hints["scale_units"], hints["scale_type"] = "arcsecperpix", "ev"
            hints["scale_est"], hints["scale_err"] = request.scale_arcsec, 10.0
        if request.has_hint:
            hints["center_ra"], hints["center_dec"] = request.ra_deg, request.dec_deg
            hints["radius"] = max(1.0, request.radius_deg)
        return hints

    def _wait_for_job(self, submission: int, line: _Line) -> int | None:
        """Return the number of the successful job, or None when the service found no solution."""
        while time.monotonic() < line.deadline:
            state = self._get_json(line, f"/api/submissions/{submission}")
            if state.get("error_message"):
                raise _ServiceError(str(state["error_message"])[:_MAX_REASON])
            found = state.get("jobs") or ()
            if not isinstance(found, list | tuple):
                raise _ServiceError("its list of jobs is no list")
            jobs = [_number(job) for job in found if job is not None]
            if jobs:
                status = self._get_json(line, f"/api/jobs/{jobs[0]}").get("status")
                if status == "success":
                    return jobs[0]
                if status == "failure":
                    return None
            pause = time.monotonic() + self._poll_s
            while time.monotonic() < pause:
                check_cancel(line.cancel)
                time.sleep(min(0.1, self._poll_s))
        raise TimeoutError

    def _wcs(self, line: _Line, job: int) -> dict[str, Any] | None:
        content = line.fetch(urllib.request.Request(f"{self._url}/wcs_file/{job}"))
        with tempfile.TemporaryDirectory(prefix="zemosaic_wcs_") as folder:
            path = Path(folder) / "r.wcs"
            path.write_bytes(content)
            return read_wcs_file(path)

    def _api(
        self, line: _Line, service: str, arguments: Mapping[str, Any], file: bytes | None = None
    ) -> dict[str, Any]:
        text = json.dumps(dict(arguments))
        if file is None:
            body = urllib.parse.urlencode({"request-json": text}).encode("ascii")
            kind = "application/x-www-form-urlencoded"
        else:
            body, kind = _multipart(text, file)
        request = urllib.request.Request(
            f"{self._url}/api/{service}", body, {"Content-Type": kind, "Referer": f"{self._url}/api/login"}
        )
        # A picture may take its time on a slow connection; answers are short.
        answer = _json_object(line.fetch(request, _REQUEST_TIMEOUT_S if file is None else math.inf))
        if answer.get("status") == "error":
            raise _ServiceError(str(answer.get("errormessage", "unknown error"))[:_MAX_REASON])
        return answer

    def _get_json(self, line: _Line, path: str) -> dict[str, Any]:
        return _json_object(line.fetch(urllib.request.Request(self._url + path)))


@dataclass(frozen=True)
class _Line:
    """The connection to the service for one frame: until when, and who may end it earlier."""

    deadline: float
    cancel: Cancel | None

    def fetch(self, request: urllib.request.Request, limit_s: float = _REQUEST_TIMEOUT_S) -> bytes:
        """Return the answer to one request; see `web_request.fetch`."""
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return fetch(request, min(limit_s, left_s), self.cancel)


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise _ServiceError("its answer is JSON nested too deeply") from error
    if not isinstance(answer, dict):
        raise _ServiceError(f"it answers with a {type(answer).__name__}")
    return answer


def _entry(answer: Mapping[str, Any], name: str) -> Any:
    if answer.get(name) is None:
        raise _ServiceError(f"its answer has no {name}")
    return answer[name]


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _ServiceError(f"{str(value)[:40]!r} is no number of a job") from error


def _multipart(text: str, file: bytes) -> tuple[bytes, str]:
    """Encode the JSON and a file as multipart/form-data (RFC 7578)."""
    mark = uuid.uuid4().hex
    head = (
        f'--{mark}\r\nContent-Disposition: form-data; name="request-json"\r\n'
        f"Content-Type: text/plain\r\n\r\n{text}\r\n"
        f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="frame.fits"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode("utf-8") + file + f"\r\n--{mark}--\r\n".encode("ascii")
    return body, f"multipart/form-data; boundary={mark}"
