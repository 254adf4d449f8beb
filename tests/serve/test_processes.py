"""Finding and ending the processes below one, in an interpreter of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from diffusion_edge.places import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and subreapers")


def run(script: str) -> str:
    """A script in its own process, for adopting orphans cannot be undone."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=True,
    )
    return done.stdout.strip()


def test_orphans_are_found_and_ended_and_others_spared() -> None:
    assert (
        run("""
        import subprocess, sys
        from diffusion_edge.serve.processes import adopt_orphans, descendants, end_descendants
        spared = subprocess.Popen(["sleep", "60"])
        adopt_orphans()
        others = descendants()
        assert others == {spared.pid}
        # A shell that leaves a child behind and is gone.
        subprocess.run(["sh", "-c", "sleep 60 & exit 0"], check=True)
        assert len(descendants()) == 2
        assert end_descendants(spare=others) == set()
        assert descendants() == others
        spared.kill()
        """)
        == ""
    )


def test_who_does_not_listen_is_killed() -> None:
    assert (
        run("""
        import subprocess, sys
        from diffusion_edge.serve.processes import descendants, end_descendants
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True)"
        code += "; time.sleep(60)"
        deaf = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        deaf.stdout.readline()
        assert descendants() == {deaf.pid}
        assert end_descendants(spare=(), grace_s=0.2) == set()
        print("ended")
        """)
        == "ended"
    )
