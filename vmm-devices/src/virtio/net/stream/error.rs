//! Why a stream socket cannot be had, and what mends that.

use std::io;
use std::path::PathBuf;

/// See the message of each.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum StreamError {
    #[error("cannot connect to {}{}", path.display(), connect_advice(source))]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this process cannot have the connection")]
    Own(#[source] io::Error),
}

fn connect_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ECONNREFUSED | libc::ENOTSOCK) => {
            ": start who has the other end first, with this socket (`passt --socket PATH`)"
        }
        Some(libc::EAGAIN) => ": others wait for it there; it has one machine at a time",
        Some(libc::EACCES | libc::EPERM) => {
            ": let the user of the machine have the socket (`setfacl -m u:$USER:rw PATH`)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_what_mends_it() {
        let refused = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            StreamError::Connect { path: "/run/passt.sock".into(), source }.to_string()
        };
        assert!(refused(libc::ENOENT).starts_with("cannot connect to /run/passt.sock: start who has"));
        assert!(refused(libc::EACCES).contains("setfacl"));
        assert_eq!(refused(libc::EMFILE), "cannot connect to /run/passt.sock");
    }
}
