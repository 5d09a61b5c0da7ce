//! `file_kind`: what a file is, in the words of error messages.

use std::fs::FileType;
use std::os::unix::fs::FileTypeExt;

/// "a FIFO", "a block device" and so on.
#[must_use]
pub fn file_kind(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a regular file"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "no file"
    }
}
