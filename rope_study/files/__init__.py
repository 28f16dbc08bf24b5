"""Files and folders, on a disk or in a bucket: where they are, and that they are written whole.

Takes paths as users write them (paths.py); gives files that are whole or not there, and what the
system refuses as one line (writing.py). The only place that knows buckets.
"""

from rope_study.files.writing import (
    atomic,
    check_new_folder,
    check_writable,
    explain,
    explained,
    move_to,
    read_json,
    write_atomically,
)
