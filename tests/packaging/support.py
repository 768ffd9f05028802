"""What the tests of the packaging have in common. BLACKSTART names the binary to package."""
import os, shutil, subprocess, sys, tempfile, unittest
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
BINARY = Path(os.environ["BLACKSTART"]).resolve()
VENV = Path(sys.executable).parent


def run(*command, ok=True, **options):
    options = {"stderr": subprocess.STDOUT, **options}
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, cwd=ROOT, **options)
    if ok and done.returncode:
        raise AssertionError("%s ended with %d:\n%s" % (" ".join(map(str, command)), done.returncode, done.stdout))
    return done


class Scratch(unittest.TestCase):
    def setUp(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="blackstart-packaging-"))
        self.addCleanup(shutil.rmtree, self.scratch)


def documents(name):
    return list(yaml.safe_load_all((PACKAGING / name).read_text()))
