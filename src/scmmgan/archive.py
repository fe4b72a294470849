"""Trained models as directories: `scmmgan.save` and `scmmgan.load`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from scmmgan.data import directory as _directory
from scmmgan.data import slots as _slots
from scmmgan.data.keys import Keys

if TYPE_CHECKING:
    from mudata import MuData

    from scmmgan.model.nets.trained import Trained, TrainedLatent


def save(mdata: MuData, directory: str | PathLike[str], *, key: str = "scmmgan") -> None:
    """Write the trained model of an alignment to a directory, without the data.

    It holds `model.json` (settings, names, verdict), `arrays.npz` (networks, transforms, and the at most 20,000 training
    cells of each modality that new cells are smoothed with, in model space) and `README.md`, a card that says what the
    model is. Nothing is pickled. Names of cells are not written.

    Parameters
    ----------
    mdata
        Aligned data.
    directory
        Where to; a model that is there is replaced, anything else is left alone.
    key
        `key_added` of the alignment.

    Returns
    -------
    `None`. Nothing is written to `mdata`; the files are all there or none.

    Raises
    ------
    FileExistsError
        If the directory holds something else.
    KeyError
        If there is no such alignment.
    TypeError
        If `directory` is no path.
    ValueError
        If the record is damaged, or was made with `save_model=False`.

    Examples
    --------
    >>> import tempfile
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     smm.save(mdata, f"{folder}/model")
    ...     smm.load(f"{folder}/model").modalities
    ['rna', 'protein']
    """
    record = _slots.stored_model(mdata, Keys(key))
    _directory.write(directory, record, _card(record))


def load(directory: str | PathLike[str]) -> Trained | TrainedLatent:
    """Read a trained model that :func:`scmmgan.save` wrote.

    Parameters
    ----------
    directory
        Where it is.

    Returns
    -------
    The model, as of :func:`scmmgan.get.model`, to the last bit: :func:`scmmgan.tl.translate` takes it. Writes nothing.

    Raises
    ------
    FileNotFoundError
        If there is no such directory.
    TypeError
        If `directory` is no path.
    ValueError
        If it holds no model, that of another format, or a damaged one.

    Examples
    --------
    >>> import tempfile
    >>> import scmmgan as smm
    >>> mdata = smm.datasets.toy()
    >>> smm.tl.align(mdata, links="gene", max_steps=50, progress_bar=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     smm.save(mdata, f"{folder}/model")
    ...     model = smm.load(f"{folder}/model")
    >>> smm.tl.translate(mdata["rna"], "rna", "protein", model=model).n_obs == mdata["rna"].n_obs
    True
    """
    from scmmgan.model.nets.trained import rebuilt

    record = _directory.read(directory)
    try:
        return rebuilt(record)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _directory.damaged(directory, str(error)) from error


def _card(record: Mapping[str, Any]) -> str:
    """What people read of a model."""
    params, config = record["params"], json.loads(str(record["model"]["config"]))
    names = config["modalities"]
    lines = ["---", "library_name: scmmgan", "license:", "---", "", f"# scmmgan: {' ↔ '.join(names)}", ""]
    lines += [
        f"Maps cells between {', '.join(names)}: `scmmgan.tl.translate(cells, {names[0]!r}, {names[1]!r}, model=...)`.",
        "",
    ]
    lines += ["## Data", "", "| modality | training cells | features | read from | batches |", "|---|---|---|---|---|"]
    for name in names:
        of = config["inputs"][name]
        read = f"obsm `{of['use_rep']}`" if of["use_rep"] else f"layer `{of['layer']}`" if of["layer"] else "`X`"
        cells, batches = len(record["fingerprint"][name]["cells"]), ", ".join(map(str, of["batches"])) or "–"
        lines.append(f"| {name} | {cells} | {len(config['var_names'][name])} | {read} | {batches} |")
    lines += ["", "Licence of the data: ", "", "## What supports it", ""]
    for a, others in record["diagnosis"].items():
        for b, found in others.items():
            lines += [f"- **{a}, {b}: {found['verdict']}.** {found['statement']}"]
            # numbers in the order in which they were written down
            scores = {
                k: v for k, v in found.items() if isinstance(v, int | float | np.number) and not isinstance(v, bool)
            }
            lines += [f"  - `{name}`: {float(value):.3g}" for name, value in scores.items()]
    lines += ["", "## How it was made", ""]
    settings = (
        "links method options geometry weights max_steps batch_size lr hidden smooth random_state pairs labels batch"
    )
    # files of earlier versions lack some
    there = [name for name in settings.split() if name in params]
    lines += [f"- {name}: {_text(params[name])}" for name in there]
    lines += [f"- {name} {version}" for name, version in params["versions"].items()]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    """An argument in a few words."""
    if hasattr(value, "columns"):
        return f"a table of {len(value)} rows"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return str(value)
