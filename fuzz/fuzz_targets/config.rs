//! Configuration text: no text may panic, and what is accepted must survive being written and read again.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vmm_cli::config::parse_toml;

fuzz_target!(|text: &str| {
    let origin = Path::new("/machines/vm.toml");
    match parse_toml(text, origin) {
        Ok(config) => {
            let written = config.to_toml();
            match parse_toml(&written, origin) {
                Ok(read) => assert_eq!(read, config, "{written}"),
                Err(error) => panic!("{error}\n{written}"),
            }
        }
        Err(error) => assert!(error.to_string().starts_with("/machines/vm.toml")),
    }
});
