# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for images that cannot be pulled where no registry is.

They are this machine's own programs under upstream's names. So they show that docker-compose.yml
and the Dockerfile fit together and run; not that upstream's images are as we think.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.e2e.private_docker import Docker, checked

NOBODY = 65534
USERS = f"root:x:0:0:root:/root:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}:nobody:/:/bin/false\n"
GROUPS = f"root:x:0:\nnobody:x:{NOBODY}:\n"
PACKAGES = "/usr/local/lib/stand-in"
BUILD_TOOLS = ("pip", "hatchling", "hatch-fancy-pypi-readme", "setuptools", "wheel")
UNUSED = re.compile(r"__pycache__|^torch/(include|test)/|\.a$|^\.\./|^bin/")
"""Of the packages: what no program of ours reads."""


class RootFolder:
    """A folder that becomes the root of a container.

    Args:
        folder: an empty one.
        busybox: a static one, for the shell and what a health check calls.
    """

    def __init__(self, folder: Path, busybox: str) -> None:
        self.folder = folder
        for name in ("bin", "etc", "usr/bin", "usr/sbin", "home", "root"):
            self.path(name).mkdir(parents=True)
        self.path("tmp").mkdir()
        self.path("tmp").chmod(0o1777)
        self.path("etc/passwd").write_text(USERS)
        self.path("etc/group").write_text(GROUPS)
        shutil.copy(busybox, self.path("bin/busybox"))
        for applet in set(checked(busybox, "--list").split()) - {"busybox"}:
            self.path(f"bin/{applet}").symlink_to("busybox")

    def path(self, inside: str | Path) -> Path:
        """Where something of the container lies here."""
        return self.folder / str(inside).lstrip("/")

    def add_program(self, program: str | Path, inside: str) -> None:
        """Copy a program, and what it is linked with."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(program).resolve(), target)
        self.add_libraries([target])

    def add_libraries(self, files: Iterable[Path]) -> None:
        """Copy the machine's libraries that these files are linked with."""
        listed = subprocess.run(["ldd", *files], capture_output=True, text=True).stdout
        for library in set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", listed, re.MULTILINE)):
            if not library.startswith((str(self.folder), sys.prefix)):
                target = self.path(library)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    shutil.copy(library, target)

    def add_folder_of(self, user: int, inside: str) -> None:
        """A folder that belongs to a user, for a volume to take over."""
        self.path(inside).mkdir(parents=True)
        os.chown(self.path(inside), user, user)

    def as_image(self, docker: Docker, name: str, *changes: str) -> None:
        """Import it under a name, and remove it here."""
        options = [f"--change={change}" for change in changes]
        with subprocess.Popen(
            ["tar", "--create", f"--directory={self.folder}", "."], stdout=subprocess.PIPE
        ) as archive:
            docker("import", *options, "-", name, given=archive.stdout)
        assert archive.returncode == 0
        shutil.rmtree(self.folder)


def prometheus_image(docker: Docker, root: RootFolder, name: str, program: str) -> None:
    """Laid out as upstream's: https://github.com/prometheus/prometheus/blob/main/Dockerfile"""
    root.add_program(program, "/bin/prometheus")
    root.add_folder_of(NOBODY, "/prometheus")
    root.as_image(
        docker, name, "USER nobody", "WORKDIR /prometheus", 'ENTRYPOINT ["/bin/prometheus"]'
    )


def alertmanager_image(docker: Docker, root: RootFolder, name: str, program: str) -> None:
    """Laid out as upstream's: https://github.com/prometheus/alertmanager/blob/main/Dockerfile"""
    root.add_program(program, "/bin/alertmanager")
    root.add_folder_of(NOBODY, "/alertmanager")
    root.path("etc/alertmanager").mkdir()
    _add_default_templates(root, Path(program).resolve())
    root.as_image(
        docker, name, "USER nobody", "WORKDIR /alertmanager", 'ENTRYPOINT ["/bin/alertmanager"]'
    )


def _add_default_templates(root: RootFolder, program: Path) -> None:
    """Debian's Alertmanager reads from a folder what upstream's has inside of it."""
    inside = "usr/share/prometheus/alertmanager"
    found = (folder / inside for folder in (program.parents[2], Path("/")))
    templates = next(filter(Path.is_dir, found), None)
    if templates is not None:
        shutil.copytree(templates, root.path(inside))


def python_image(docker: Docker, root: RootFolder, name: str, project: str, extra: str) -> None:
    """This Python, with all in it that a project needs, since pip has no index there."""
    home = Path(sys.base_prefix)
    version = f"python{sysconfig.get_python_version()}"
    library = home / "lib" / version
    root.add_program(home / "bin" / version, str(home / "bin" / version))
    shutil.copytree(
        library,
        root.path(library),
        ignore=shutil.ignore_patterns(
            "__pycache__", "test", "site-packages", "config-*", "idlelib"
        ),
    )
    for alias in ("python", "python3"):
        root.path(f"bin/{alias}").symlink_to(home / "bin" / version)
    _add_packages(root, [*_needs(distribution(project), extra), *BUILD_TOOLS])
    root.add_libraries(root.folder.rglob("*.so*"))
    root.add_program("/usr/sbin/useradd", "/usr/sbin/useradd")
    root.as_image(
        docker,
        name,
        f"ENV PATH={home}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin PYTHONPATH={PACKAGES}",
        "ENV PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0 PIP_BREAK_SYSTEM_PACKAGES=1",
    )


def _add_packages(root: RootFolder, names: Iterable[str]) -> None:
    target = root.path(PACKAGES)
    for package in _with_what_they_need(names):
        for file in package.files or ():
            if not UNUSED.search(str(file)):
                copied = target / file
                copied.parent.mkdir(parents=True, exist_ok=True)
                _link(Path(str(package.locate_file(file))), copied)


def _link(source: Path, copied: Path) -> None:
    try:
        os.link(source, copied)
    except OSError:  # another file system
        shutil.copy(source, copied)


def _with_what_they_need(names: Iterable[str]) -> list[Distribution]:
    """The installed packages of these names and all that they require, without extras."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # a tool that this environment gets along without
            waiting += _needs(found[name])
    return list(found.values())


def _needs(package: Distribution, extra: str = "") -> list[str]:
    needs = map(Requirement, package.requires or ())
    return [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": extra})]
