# SPDX-License-Identifier: Apache-2.0
"""``reference``: the kernels that guests may run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from nova_vmi_attest.cmd.manage.context import CommandError, Context, Nouns
from nova_vmi_attest.references.manifest import Manifest


def add_parser(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the noun and its verbs."""
    noun = nouns.add_parser("reference", help="approved kernels")
    verbs = noun.add_subparsers(metavar="VERB", required=True)
    add = verbs.add_parser(
        "import", parents=[common], help="approve the kernel of a package, or of two paths"
    )
    add.add_argument("path", type=Path, help=".deb or .rpm file, or a vmlinuz with --modules")
    add.add_argument("--modules", type=Path, metavar="DIRECTORY", help="the kernel's lib/modules/RELEASE")
    add.set_defaults(run=_import)
    verbs.add_parser("list", parents=[common], help="list approved kernels").set_defaults(run=_list)
    show = verbs.add_parser("show", parents=[common], help="show one kernel and its modules")
    show.add_argument("reference", help="manifest digest, or enough of its beginning")
    show.set_defaults(run=_show)
    delete = verbs.add_parser("delete", parents=[common], help="withdraw the approval of a kernel")
    delete.add_argument("reference", help="manifest digest, or enough of its beginning")
    delete.set_defaults(run=_delete)


def _import(args: argparse.Namespace, context: Context) -> None:
    store = context.references()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(args.path.name, total=1.0)

        def report(fraction: float, name: str) -> None:
            progress.update(task, completed=fraction, description=name)

        if args.modules:
            manifest = store.import_tree(args.path, args.modules, progress=report)
        else:
            manifest = store.import_package(args.path, progress=report)
    context.done(
        f"approved kernel {manifest.release} with {len(manifest.modules)} modules as {manifest.digest}",
        **_summary(manifest),
    )


def _list(args: argparse.Namespace, context: Context) -> None:
    rows = [_summary(manifest) for manifest in context.references().manifests()]
    context.table(("release", "reference", "modules", "package", "version"), rows)


def _show(args: argparse.Namespace, context: Context) -> None:
    manifest = _find(context, args.reference)
    details = {
        "banner_digest": manifest.banner_digest,
        "image_digest": manifest.image.digest,
        "image_bytes": manifest.image.size,
        "source_digest": manifest.source.digest,
    }
    if context.as_json:
        details["module_digests"] = {module.name: module.digest for module in manifest.modules}
    context.record({**_summary(manifest), **details})


def _delete(args: argparse.Namespace, context: Context) -> None:
    manifest = _find(context, args.reference)
    context.references().delete(manifest.digest)
    context.done(f"kernel {manifest.release} is no longer approved", **_summary(manifest))


def _find(context: Context, beginning: str) -> Manifest:
    found = [item for item in context.references().manifests() if item.digest.startswith(beginning)]
    if len(found) != 1:
        raise CommandError(f"{len(found)} references begin with {beginning!r}", "see 'reference list'")
    return found[0]


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "reference": manifest.digest,
        "release": manifest.release,
        "build_id": manifest.build_id,
        "modules": len(manifest.modules),
        "package": manifest.source.package,
        "version": manifest.source.version,
    }
