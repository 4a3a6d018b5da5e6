"""Every class of fault that costs a sample, and whether trying again may help.

A class names what is wrong with the input, in kebab-case; it is what quarantine and ledger count by. ``calumma retry``
reads again only what a later moment may mend: a picture that was not there yet, a storage that did not answer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """A class of faults. ``transient``: reading the same place again may succeed."""

    about: str
    transient: bool = False


FAULTS: dict[str, Fault] = {
    # rows
    "bad-json": Fault("a line is not a JSON object"),
    "bad-csv": Fault("a line is not CSV"),
    "bad-columns": Fault("a row has more or fewer columns than the header"),
    "bad-field": Fault("a field holds something else than it should"),
    "missing-field": Fault("a field is not there, or null"),
    "not-utf-8": Fault("a text is not UTF-8"),
    "bad-unicode": Fault("a text holds half a surrogate pair"),
    "bad-structure": Fault("a sample's pictures, texts and roles do not fit together"),
    "bad-markup": Fault("an HTML or Markdown file cannot be parsed"),
    "bad-tokens": Fault("token ids are out of range, or a picture's ids are not whole"),
    "duplicate-member": Fault("an archive holds two members of one name"),
    "bad-member": Fault("a member of an archive is no plain file: a link, a device, a file with holes"),
    "missing-caption": Fault("a picture has no caption"),
    "plugin-error": Fault("a filter or scorer that the recipe plugs in raised an error", True),
    # files
    "bad-name": Fault("a name is none that a file can have"),
    "path-escape": Fault("a name leads out of its folder"),
    "too-large": Fault("a file, or a line of one, is larger than what is read into memory"),
    # Not transient: a repaired file has another size or time, so that the next run scans its source anew.
    "damaged-file": Fault("a file or archive ends early or cannot be unpacked; what lies before was read"),
    "read-error": Fault("the storage did not give the bytes, after several tries", True),
    "missing-image": Fault("the source names a file that is not there", True),
    # Not transient: who fetches them, or puts them into the archive, changes the source, which is then scanned anew.
    "not-downloaded": Fault("a picture on the web, of which the source has only the address"),
    "no-picture": Fault("a row or a sample of an archive has no picture"),
}
"""Faults of rows and files; those of pictures are in :mod:`tasks.encode.decode`."""
