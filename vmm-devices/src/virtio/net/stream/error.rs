//! Why a stream socket cannot be had, and what mends that.

use std::io;
use std::path::PathBuf;

use crate::connector::connect_advice;

/// See the message of each.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the message of each variant describes it and its operands")]
pub enum StreamError {
    #[error("cannot connect to {}{}", path.display(), connect_advice(source, FIRST))]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("this process cannot have the connection")]
    Own(#[source] io::Error),
}

/// Who has to be started before it can be connected to.
const FIRST: &str = "who has the other end first, with this socket (`passt --socket PATH`)";

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
