"""The command `scmmgan`: what the functions do, in files, for pipelines."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import scmmgan as smm
from scmmgan._demo import run_demo
from scmmgan.settings import unpulled

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

# exit statuses beside 0 and those of argparse (2)
FAILED, USAGE, NOT_SUPPORTED = 1, 2, 3
# arguments that files, or other options, stand for
OWN = {"mdata", "cells", "modalities", "source", "target", "model", "copy", "out"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with `argv` (default: the process's own arguments) and return its exit status."""
    parser = _parser()
    args = parser.parse_args(_with_config(parser, list(sys.argv[1:] if argv is None else argv)))
    # a terminal or file whose encoding lacks a character gets a question mark
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    # files only: no display is needed, and no backend that the environment names
    os.environ["MPLBACKEND"] = "Agg"
    try:
        status = args.run(args)
        sys.stdout.flush()
        return int(status or 0)
    except BrokenPipeError:
        # all is written; who read the table has seen enough of it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except KeyboardInterrupt:
        return _fail(args.command, "interrupted: files of an earlier run are as they were.", 130)
    except _NotWritable as error:
        path, reason = error.args
        advice = "" if "another" in reason else " Make room, or name another with -o."
        return _fail(args.command, f"cannot write to {str(path)!r}: {reason.rstrip('.')}.{advice}", USAGE)
    except Exception as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        return _fail(args.command, f"{type(error).__name__}: {text}{_repeated(args, str(text))}", FAILED)


class _NotWritable(Exception):
    """What cannot be written, and why."""


def _fail(command: str, message: str, status: int) -> int:
    """Print one sentence on stderr; the exit status."""
    print(f"scmmgan {command}:", " ".join(message.split()), file=sys.stderr)
    return status


# --- arguments ---------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    """All commands; arguments of functions come from their signatures and docstrings."""
    parser = argparse.ArgumentParser(prog="scmmgan", description="Unpaired mapping between single-cell modalities.")
    parser.add_argument("--version", action="version", version=f"scmmgan {smm.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    text = "Align a real data set that needs no network, score it against the truth, draw it. Up to a minute."
    demo = commands.add_parser("demo", help=text, description=text)
    there = Path("scmmgan_demo")
    demo.add_argument("-o", "--output", type=Path, default=there, metavar="DIR", help="folder to write (%(default)s)")
    demo.set_defaults(run=_demo, function=None)
    specs: dict[str, tuple[Callable[[argparse.Namespace], int | None], Callable[..., Any] | None, str, bool]] = {
        "align": (_align, smm.tl.align, "Align modalities; write the aligned data.", True),
        "translate": (_translate, smm.tl.translate, "Map new cells with a trained model.", True),
        "uncertainty": (_uncertainty, smm.tl.uncertainty, "How far mapped features are determined.", True),
        "diagnose": (_diagnose, smm.tl.diagnose, "What supports an alignment, anew.", False),
        "transfer": (_transfer, smm.tl.transfer, "Give cells the labels or numbers of the other modality.", True),
        "evaluate": (_evaluate, smm.tl.evaluate, "All scores of an alignment in one table.", False),
        "compare": (_compare, smm.tl.compare, "Several methods, and what other tools wrote, in one table.", True),
        "info": (_info, None, "What a file or a model directory holds.", False),
    }
    for name, (run, function, text, writes) in specs.items():
        # a shortened option would not be found to have been typed, where --config has it too
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run, function=function)
        command.add_argument("input", nargs="+" if name == "align" else 1, type=Path, metavar="FILE", help=_INPUT[name])
        if name not in ("info", "diagnose"):
            command.add_argument("--source", required=name != "align", metavar="NAME", help="modality that is mapped")
            command.add_argument("--target", required=name != "align", metavar="NAME", help="modality it is mapped to")
        if name == "translate":
            command.add_argument("--model", type=Path, required=True, help="aligned h5mu or zarr, or a model directory")
        if name != "info":
            text = f"file to write, by its ending: {' or '.join(_OUTPUT[name])}"
            command.add_argument("-o", "--output", type=Path, required=writes, metavar="FILE", help=text)
            command.add_argument("--config", type=Path, metavar="TOML", help="options, in a table named as the command")
        if name in ("align", "diagnose"):
            text = f"exit status {NOT_SUPPORTED} where nothing supports the alignment; the output is written"
            command.add_argument("--require-support", action="store_true", help=text)
        command.add_argument("--json", action="store_true", help="print JSON")
        if function is not None:
            _add_arguments(command, function)
    return parser


_INPUT = {
    "align": "h5mu or zarr, or one h5ad for each modality, in the order of --source and --target",
    "translate": "new cells: h5ad, h5mu or zarr",
    "uncertainty": "aligned h5mu or zarr",
    "diagnose": "aligned h5mu or zarr",
    "transfer": "aligned h5mu or zarr",
    "evaluate": "aligned h5mu or zarr",
    "compare": "h5mu or zarr, aligned or not",
    "info": "h5mu, h5ad or zarr, or a model directory",
}


_OUTPUT = {
    **dict.fromkeys(("align", "uncertainty", "diagnose"), (".h5mu", ".zarr")),
    "translate": (".h5ad", ".zarr"),
    "transfer": (".h5mu", ".zarr", ".csv"),
    "evaluate": (".csv",),
    "compare": (".png", ".pdf", ".svg"),
}


def _add_arguments(command: argparse.ArgumentParser, function: Callable[..., Any]) -> None:
    """An option for every argument of a function that a command line can give, with the function's own default."""
    documented = _documented(function)
    given = {name: of for name, of in inspect.signature(function).parameters.items() if name not in OWN}
    for name, of in given.items():
        flag, kind, text = f"--{name.replace('_', '-')}", str(of.annotation), documented.get(name, "")
        text += " Repeat it for several." if "Sequence" in kind else ""
        # what is not given is left to the function
        text += "" if of.default is inspect.Parameter.empty else f" [{of.default}]"
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        how |= {"required": True} if of.default is inspect.Parameter.empty else {}
        if kind == "bool":
            how |= {"default": sys.stderr.isatty()} if name == "progress_bar" else {}
            command.add_argument(flag, action=argparse.BooleanOptionalAction, **how)
        else:
            named = "NAME=" if kind.startswith("Mapping") else "[NAME=]" if "Mapping" in kind else ""
            command.add_argument(flag, action="append", metavar=f"{named}VALUE", **how)


def _documented(function: Callable[..., Any]) -> dict[str, str]:
    """First sentence on every argument, of a numpy docstring."""
    body = inspect.cleandoc(function.__doc__ or "").partition("Parameters\n----------\n")[2].partition("\nReturns\n")[0]
    found = re.split(r"^(\*?\w+)\n(?= )", body, flags=re.MULTILINE)[1:]
    plain = {
        name: re.sub(r":\w+:`~?([^`]+)`|`", r"\1", " ".join(text.split()))
        for name, text in zip(found[::2], found[1::2])
    }
    return {name: re.split(r"(?<=[^.]{3}[.]) ", text)[0] for name, text in plain.items()}


def _with_config(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """The arguments, those of `--config` before them; a usage error where the file cannot be read."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", type=Path)
    path = first.parse_known_args(argv)[0].config
    if path is None or not argv:
        return argv
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"--config {path}: {error}")
    given = {of.partition("=")[0] for of in argv}
    more: list[str] = []
    # a file of one command, or with tables of others alone
    options = {} if set(found) <= set(_OUTPUT) else found
    for name, value in found.get(argv[0], options).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flag = flag if value else f"--no-{flag[2:]}"
        if flag not in given and f"--no-{flag[2:]}" not in given and flag.replace("--no-", "--") not in given:
            more += [flag] if isinstance(value, bool) else [f"{flag}={word}" for word in _words(value)]
    # before what is typed, which counts
    return [argv[0], *more, *argv[1:]]


def _words(value: Any) -> list[str]:
    """A value of a TOML file as it would be typed."""
    if isinstance(value, Mapping):
        return [f"{name}={word}" for name, entry in value.items() for word in _entries(entry)]
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]


def _entries(value: Any) -> list[str]:
    """What is under a name: text as it is, one word for each entry of a list."""
    if isinstance(value, list):
        return [word for entry in value for word in _entries(entry)]
    return [value if isinstance(value, str) else json.dumps(value)]


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of the function that were typed, as its types."""
    found = {}
    for name, of in inspect.signature(args.function).parameters.items():
        if name not in OWN and hasattr(args, name):
            value = getattr(args, name)
            found[name] = value if isinstance(value, bool) else _value(value, str(of.annotation))
    return found


def _value(words: Sequence[str], kind: str) -> Any:
    """One value, `modality=value` ones as a dict, or a list; a table where a csv or tsv file is named."""
    if "Mapping" in kind and all("=" in word for word in words):
        named: dict[str, list[Any]] = {}
        for name, _, value in (word.partition("=") for word in words):
            named.setdefault(name, []).append(_one(value, kind))
        inside = kind.partition("Mapping[str, ")[2]
        if (twice := [name for name in named if len(named[name]) > 1]) and "Sequence" not in inside:
            raise ValueError(f"{twice[0]!r} is given {len(named[twice[0]])} values; one is taken.")
        listed = inside.startswith("Sequence")
        return {name: of if listed or len(of) > 1 else of[0] for name, of in named.items()}
    if "Sequence" in kind:
        return [_one(word, kind) for word in words] if kind == "Sequence[int]" else list(words)
    if len(words) > 1:
        raise ValueError(f"{' '.join(words)!r}: one value is taken, or one for each modality (NAME=VALUE).")
    return _one(words[0], kind)


def _one(word: str, kind: str) -> Any:
    if word == "None":
        return None
    if "Mapping" in kind and (word.lower() in ("true", "false") or word.startswith("{")):
        try:
            return json.loads(word if word.startswith("{") else word.lower())
        except ValueError as error:
            raise ValueError(f"{word!r} is no JSON: {error}.") from error
    if "DataFrame" in kind and word.endswith((".csv", ".tsv")):
        import pandas as pd

        return pd.read_csv(word, sep="\t" if word.endswith("tsv") else ",")
    for number in (int, float):
        if number.__name__ in kind:
            try:
                return number(word)
            except ValueError:
                continue
    return word


def _repeated(args: argparse.Namespace, text: str) -> str:
    """What to type where the word that an error names is several; names may have commas."""
    arguments = inspect.signature(args.function).parameters if args.function else {}
    for name in (name for name, of in arguments.items() if "Sequence" in str(of.annotation)):
        for head, equals, value in (word.rpartition("=") for word in getattr(args, name, ())):
            if "," in value and repr(value) in text:
                words = [shlex.quote(f"{head}{equals}{one.strip()}") for one in value.strip("[]()").split(",")]
                each = " ".join(f"--{name.replace('_', '-')} {word}" for word in words)
                return f" For several values repeat the option: {each}"
    return ""


# --- files -------------------------------------------------------------------------------------------------------


def _read(path: Path, *, backed: bool = False) -> MuData | AnnData:
    """Data of a file, by its ending; what a zarr folder holds is tried. With `backed` X stays there."""
    import anndata
    import mudata

    if not path.exists():
        raise FileNotFoundError(f"there is no {str(path)!r}.")
    try:
        with unpulled():
            if path.suffix == ".h5ad":
                return anndata.read_h5ad(path, backed="r" if backed else None)
            if path.is_dir():
                whole = mudata.read_zarr if (path / "mod").exists() else anndata.read_zarr
                return (_in_zarr if backed else whole)(path)
            return mudata.read_h5mu(path, backed="r" if backed else False)
    except Exception as error:
        # what is wrong in a file comes in any type
        raise ValueError(f"{str(path)!r} cannot be read as h5mu, h5ad or zarr, or is cut off: {error}") from error


def _in_zarr(path: Path) -> MuData | AnnData:
    """Cells of a zarr folder, of which X stays there."""
    import anndata
    import mudata
    import zarr

    if (path / "mod").exists():
        return mudata.MuData({of.name: _in_zarr(of) for of in (path / "mod").iterdir() if of.is_dir()})
    group = zarr.open_group(path, mode="r")
    rest = {name: anndata.io.read_elem(group[name]) for name in group if name not in ("X", "raw")}
    return anndata.AnnData(anndata.io.sparse_dataset(x) if isinstance(x := group.get("X"), zarr.Group) else x, **rest)


def _write(data: Any, path: Path) -> None:
    """Write data, by the ending of the name: whole or not at all."""
    with _in_place(path) as there, unpulled():
        if hasattr(data, "to_csv"):
            data.to_csv(there, index=False)
        elif path.suffix == ".zarr":
            data.write_zarr(there)
        else:
            data.write(there)


@contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    """A name beside the path, which gets the path's name at the end; after an error it is removed."""
    there, old = (path.with_name(f".{path.stem}.{os.getpid()}{end}") for end in (path.suffix, ".old"))
    try:
        with _writing(path):
            yield there
            if path.is_dir():
                path.rename(old)
            os.replace(there, path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for left in (there, old):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """_NotWritable where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise _NotWritable(path, error.strerror or str(error)) from error


def _check_output(args: argparse.Namespace) -> None:
    """_NotWritable before any work is done."""
    path, endings = args.output, _OUTPUT[args.command]
    if path is None:
        return
    if path.suffix not in endings:
        raise _NotWritable(path, f"its name must end in {' or '.join(endings)}")
    if path.is_dir() and not any(path.joinpath(name).exists() for name in (".zgroup", "zarr.json")):
        raise _NotWritable(path, "it is a folder and no zarr")
    with _writing(path):
        _make_writable(path.parent)


def _make_writable(folder: Path) -> None:
    """Create the folder and try it, before any work is done; OSError if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


# --- commands ----------------------------------------------------------------------------------------------------


def _align(args: argparse.Namespace) -> int:
    """Align, write, print what supports it."""
    _check_output(args)
    names = [name for name in (args.source, args.target) if name]
    if len(names) == 1:
        raise ValueError("give both --source and --target, or neither for all modalities.")
    if len(args.input) > 1:
        import mudata

        names = names or [path.stem for path in args.input]
        if len(names) != len(args.input):
            raise ValueError(f"{len(args.input)} files are {len(names)} modalities; give one file for each.")
        with unpulled():
            mdata = mudata.MuData({name: _read(path) for name, path in zip(names, args.input)})
    else:
        mdata = _mudata(args.input[0])
    given = _given(args)
    if given.get("init") is not None:
        given["init"] = _model(Path(given["init"]))
    smm.tl.align(mdata, *names, **given)
    if int(given.get("devices", 1)) > 1 and os.environ.get("RANK", "0") != "0":
        return 0  # the first process writes what all have
    _write(mdata, args.output)
    return _say_support(mdata, str(given.get("key_added", "scmmgan")), args)


def _mudata(path: Path) -> MuData:
    data = _read(path)
    if not hasattr(data, "mod"):
        raise ValueError(f"{str(path)!r} holds one modality; name one file for each.")
    return data


def _model(path: Path) -> MuData | Path:
    """A model directory as it is, else an aligned file."""
    return path if (path / "model.json").exists() else _mudata(path)


def _translate(args: argparse.Namespace) -> None:
    """Map the cells, write them, print how many."""
    _check_output(args)
    model, given = _model(args.model), _given(args)
    cells = _read(args.input[0], backed=True)
    with _writing(args.output):
        mapped = smm.tl.translate(cells, args.source, args.target, model=model, out=args.output, **given)
    found = {"cells": mapped.n_obs, "features": mapped.n_vars, "output": str(args.output)}
    text = f"{mapped.n_obs} cells × {mapped.n_vars} features of {args.target}"
    if (column := f"{given.get('key', 'scmmgan')}_ood") in mapped.obs:
        found["out_of_distribution"] = out = float((mapped.obs[column] > 0.95).mean())
        text += f"; {out:.1%} are farther out than 95 % of the training cells."
    print(_json(found) if args.json else text)


def _uncertainty(args: argparse.Namespace) -> None:
    """Add the uncertainty, write, print the means."""
    _check_output(args)
    mdata, given = _mudata(args.input[0]), _given(args)
    smm.tl.uncertainty(mdata, args.source, args.target, **given)
    _write(mdata, args.output)
    found = smm.get.uncertainty_summary(mdata, args.source, args.target, key=given.get("key", "scmmgan"))
    table = found.pop("features")
    rows = table.rename_axis("feature").reset_index().to_dict("records")
    print(_json({"features": rows}) if args.json else table.describe().round(3))


def _diagnose(args: argparse.Namespace) -> int:
    """Diagnose anew, write where that is asked, print what supports the alignment."""
    _check_output(args)
    mdata, given = _mudata(args.input[0]), _given(args)
    smm.tl.diagnose(mdata, **given)
    if args.output is not None:
        _write(mdata, args.output)
    return _say_support(mdata, given.get("key", "scmmgan"), args)


def _transfer(args: argparse.Namespace) -> None:
    """Give cells labels or numbers; write the data, or a table of them; print how many cells got what."""
    _check_output(args)
    mdata, given = _mudata(args.input[0]), _given(args)
    smm.tl.transfer(mdata, args.source, args.target, **given)
    obs = mdata[args.source].obs
    columns = [f"{given.get('key', 'scmmgan')}_{args.target}_{name}" for name in given["obs"]]
    if args.output.suffix == ".csv":
        _write(_transferred(mdata, args.source, columns, str(given.get("key", "scmmgan"))), args.output)
    else:
        _write(mdata, args.output)
    found: dict[str, dict[str, float]] = {}
    for name in columns:
        if obs[name].dtype.kind == "f":
            found[name] = {str(of): float(value) for of, value in obs[name].describe().items()}
            found[name] |= {"count": int(obs[name].count()), "no value": int(obs[name].isna().sum())}
        else:
            found[name] = {str(label): int(n) for label, n in obs[name].value_counts().items()}
            found[name]["no label"] = int(obs[name].isna().sum())
    lines = [f"{name}\n" + "\n".join(f"  {k}: {v:g}" for k, v in of.items()) for name, of in found.items()]
    print(_json(found) if args.json else "\n".join(lines))


def _transferred(mdata: MuData, source: str, columns: Sequence[str], key: str) -> pd.DataFrame:
    """What was transferred, as a table of cells: columns of obs, and the probabilities of all labels."""
    import pandas as pd

    obs, parts = mdata[source].obs, []
    labels = mdata.uns[key].get("transfer", {}).get(source, {})
    for column in columns:
        beside = (f"{column}_{of}" for of in ("unassigned", "probability", "spread"))
        parts.append(obs[[column, *(name for name in beside if name in obs)]])
        if column in labels:
            names = [f"{column}: {label}" for label in labels[column]]
            parts.append(pd.DataFrame(mdata[source].obsm[column], index=obs.index, columns=names))
    return pd.concat(parts, axis=1).rename_axis("cell").reset_index()


def _evaluate(args: argparse.Namespace) -> None:
    """Print the table, or write it."""
    _check_output(args)
    table = smm.tl.evaluate(_mudata(args.input[0]), args.source, args.target, **_given(args))
    if args.output is not None:
        _write(table, args.output)
    print(_json(table.to_dict("records")) if args.json else table.round(3).to_string(index=False))


def _compare(args: argparse.Namespace) -> int | None:
    """Compare, write the picture, print the table; a failure where every method failed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    _check_output(args)
    mdata, given = _mudata(args.input[0]), _given(args)
    table = smm.tl.compare(mdata, args.source, args.target, **given)
    figure = smm.pl.compare(mdata, args.source, args.target, key=given.get("key_added", "scmmgan"), return_fig=True)
    with _in_place(args.output) as there:
        figure.savefig(there, dpi=200, bbox_inches="tight")
    plt.close(figure)
    print(_json(table.to_dict("records")) if args.json else _wide(table))
    # a method that failed with some of the seeds has scores
    if (table["seeds"] > 0).any():
        return None
    first = table.iloc[0]
    return _fail("compare", f"every method failed; {first['method']}: {first['error']}", FAILED)


def _wide(table: Any) -> str:
    """Methods × metrics, the median (and the worst seed); what failed below."""
    import pandas as pd

    names = table["metric"].where(table["direction"] == "both", table["metric"] + ", " + table["direction"])
    text = [f"{a:.3g} ({b:.3g})" if np.isfinite(a) else "" for a, b in zip(table["median"], table["worst"])]
    rows = pd.DataFrame({"method": table["method"], "metric": names, "text": text})
    wide = rows.pivot(index="metric", columns="method", values="text").fillna("")
    wide = wide.reindex(index=names.unique(), columns=table["method"].unique())
    # the reasons are in --json
    verdicts = table.drop_duplicates("method").set_index("method")["verdict"]
    wide.loc["verdict"] = verdicts.str.partition(":")[0].str.partition(";")[0]
    failed = table[table["error"] != ""].drop_duplicates("method")
    lines = [f"{method}: {error}" for method, error in zip(failed["method"], failed["error"])]
    return "\n".join(["median (worst seed)", wide.rename_axis(None).rename_axis(None, axis=1).to_string(), *lines])


def _info(args: argparse.Namespace) -> None:
    """Print what is in a file."""
    path = args.input[0]
    if (path / "model.json").exists():
        model = smm.load(path)
        sizes = {name: len(model.features[name]) for name in model.modalities}
        found: dict[str, Any] = {"model": sizes, "verdicts": _verdicts(model.diagnosis)}
    else:
        data: Any = _read(path)
        parts = data.mod if hasattr(data, "mod") else {path.stem: data}
        found = {"modalities": {name: {"cells": a.n_obs, "features": a.n_vars} for name, a in parts.items()}}
        stored = [(key, of) for key, of in data.uns.items() if isinstance(of, Mapping)]
        records = {key: of for key, of in stored if {"model", "diagnosis"} <= set(of)}
        found["alignments"] = {key: _verdicts(of["diagnosis"]) for key, of in records.items()}
    lines = [line for title, of in found.items() for line in (f"{title}:", *(f"  {k}: {v}" for k, v in of.items()))]
    print(_json(found) if args.json else "\n".join(lines))


def _verdicts(diagnosis: Mapping[str, Any]) -> dict[str, str]:
    return {f"{a}, {b}": str(of["verdict"]) for a, others in diagnosis.items() for b, of in others.items()}


def _say_support(mdata: MuData, key: str, args: argparse.Namespace) -> int:
    """Print what supports each pair of modalities; the exit status."""
    found = [
        {"source": a, "target": b, "supported": bool(of["supported"])}
        | {name: str(of[name]) for name in ("verdict", "grade", "statement")}
        for a, others in mdata.uns[key]["diagnosis"].items()
        for b, of in others.items()
    ]
    print(_json(found) if args.json else "\n".join(str(of["statement"]) for of in found))
    passes = all(of["grade"] in ("supported", "in part") for of in found)
    return NOT_SUPPORTED if args.require_support and not passes else 0


def _json(value: Any) -> str:
    """JSON, with null where a number is not finite."""

    def plain(of: Any) -> Any:
        if isinstance(of, Mapping):
            return {str(name): plain(entry) for name, entry in of.items()}
        if isinstance(of, list):
            return [plain(entry) for entry in of]
        of = of.item() if isinstance(of, np.generic) else of
        return None if isinstance(of, float) and not np.isfinite(of) else of

    return json.dumps(plain(value), indent=1)


# --- demo --------------------------------------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    with _writing(args.output):
        _make_writable(args.output)
        report = run_demo(args.output)
    return _say(report, args.output)


def _say(report: str, folder: Path) -> int:
    """Print what was done, which is written by now; the exit status."""
    try:
        print(report, flush=True)
    except OSError as error:
        # else Python tries once more at its end, and complains
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        if not isinstance(error, BrokenPipeError):
            text = f"all files are in {str(folder)!r}, but the report cannot be printed: {error.strerror}."
            return _fail("demo", text, USAGE)
    return 0
