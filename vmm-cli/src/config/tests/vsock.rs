//! The socket device in files and flags.

use super::*;

#[test]
fn the_flag_goes_over_the_file_whose_path_is_below_its_directory() {
    let scratch = Scratch::new();
    let file = scratch.file("vm.toml", "[vsock]\ncid = 9\npath = 'vm.vsock'\n");
    let config = load([&file]).unwrap();
    assert_eq!(config.vsock, VsockConfig { cid: 9, path: Some(scratch.path("vm.vsock")), vhost: false });
    let config = load([file.into_os_string(), "--vsock=path=/run/vm.vsock".into()]).unwrap();
    assert_eq!(config.vsock, VsockConfig { cid: 3, path: Some("/run/vm.vsock".into()), vhost: false });
    let config = load(["--vsock=vhost,cid=5"]).unwrap();
    assert_eq!(config.vsock, VsockConfig { cid: 5, path: None, vhost: true });
    assert!(config.has_pci());
}

#[test]
fn an_address_that_no_guest_has_is_refused_at_its_place() {
    for cid in ["0", "1", "2", "4294967295", "-3"] {
        let error = message(parse(&format!("[vsock]\ncid = {cid}\npath = 'x'\n")).unwrap_err());
        let expected = format!(":2:7: vsock.cid = {cid} is not a whole number from 3 to 4294967294");
        assert!(error.contains(&expected), "{error}");
    }
    let error = message(parse("[vsock]\ncid = 'three'").unwrap_err());
    assert!(error.contains("vsock.cid = 'three' is a string; expected a whole number from 3"), "{error}");
    let error = message(parse("[vsock]\nsocket = 'x'").unwrap_err());
    assert!(error.contains("unknown key `vsock.socket`: "), "{error}");
    let scratch = Scratch::new();
    let error = message(load([scratch.file("vm.toml", "[vsock]\ncid = 9")]).unwrap_err());
    assert!(error.starts_with("vsock.cid (--vsock) = 9: there is a socket device only where"), "{error}");
}

#[test]
fn fault_c11_a_socket_path_without_room_for_a_port_is_refused() {
    let path = format!("/{}", "s".repeat(95));
    assert!(load([format!("--vsock=path={path}")]).is_ok());
    let error = message(load([format!("--vsock=path={path}s")]).unwrap_err());
    assert!(error.starts_with("vsock.path (--vsock): the socket path /s"), "{error}");
    assert!(error.ends_with("s is 97 bytes long, above the limit of 96"), "{error}");
}
