//! Requests of the control socket: no bytes may panic, however they are cut, and what is taken must survive being written
//! and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm_cli::control::lines::Lines;
use vmm_cli::control::wire::{MAX_REQUEST, RequestError, parse, request};

fuzz_target!(|bytes: &[u8]| {
    let Some((&size, bytes)) = bytes.split_first() else { return };
    let mut lines = Lines::default();
    let mut taken = Vec::new();
    let mut cut_short = false;
    for chunk in bytes.chunks(usize::from(size).max(1)) {
        lines.push(&chunk[..chunk.len().min(lines.room())]);
        while let Some(line) = lines.take_line() {
            match line {
                Ok(line) => taken.push(line),
                Err(_) => {
                    cut_short = true;
                    break;
                }
            }
        }
        if cut_short {
            break;
        }
    }
    let mut expected: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let rest = expected.pop().unwrap_or_default();
    if cut_short {
        assert!(expected.iter().copied().chain([rest]).any(|line| line.len() > MAX_REQUEST));
    } else {
        assert_eq!(taken, expected);
    }
    for line in taken {
        match parse(&line) {
            Ok(operation) => assert_eq!(parse(request(&operation).trim_end().as_bytes()), Ok(operation)),
            Err(RequestError::NotUtf8 { column } | RequestError::Malformed { column, .. }) => {
                assert!(column <= line.len() + 1);
            }
            Err(RequestError::TooLong) => assert!(line.len() > MAX_REQUEST),
        }
    }
});
