//! TAP interfaces that are none, and descriptors that are none.

use std::os::fd::AsRawFd;

use super::*;

fn refusal(source: TapSource, pairs: u16) -> TapError {
    Tap::open(&TapOptions { source, pairs, mtu: None }).unwrap_err()
}

#[test]
fn an_interface_that_is_not_there_is_not_created_and_how_to_make_it_is_said() {
    let error = refusal(TapSource::Existing("vmmnosuchtap".into()), 2);
    assert!(error.is_of_host());
    let error = error.to_string();
    assert!(error.starts_with("there is no interface vmmnosuchtap: make it (`sudo ip tuntap add"), "{error}");
    assert!(error.contains("user $USER multi_queue`"), "{error}");
}

#[test]
fn what_no_interface_is_called_is_refused_before_the_host_is_asked() {
    for source in [TapSource::Existing("a/b".into()), TapSource::Created("tap%d".into())] {
        let error = refusal(source, 1);
        assert!(matches!(error, TapError::Name { .. }) && !error.is_of_host(), "{error}");
    }
}

#[test]
fn the_loopback_interface_is_no_tap() {
    let error = refused("lo", 1, io::Error::from_raw_os_error(libc::EINVAL)).to_string();
    assert!(error.starts_with("the interface lo is no TAP"), "{error}");
}

#[test]
fn a_descriptor_that_is_no_tap_is_named() {
    let file = tempfile::tempfile().unwrap();
    let number = file.as_raw_fd();
    let error = refusal(TapSource::Descriptors(vec![number]), 1).to_string();
    assert_eq!(error, format!("the descriptor {number} is no TAP that belongs to an interface"));
    let error = refusal(TapSource::Descriptors(vec![-1]), 1).to_string();
    assert_eq!(error, "there is no descriptor -1: start the monitor with it open");
    assert!(matches!(refusal(TapSource::Descriptors(Vec::new()), 1), TapError::NoDescriptor));
}

#[test]
fn missing_flags_are_named() {
    assert_eq!(flag_names(FLAGS), "IFF_TAP, IFF_NO_PI, IFF_VNET_HDR");
    assert_eq!(flag_names(libc::IFF_VNET_HDR), "IFF_VNET_HDR");
}

#[test]
fn offloads_are_the_bits_of_a_tap() {
    let none = Offloads::default();
    assert_eq!(bits(none), 0);
    assert_eq!(bits(Offloads { checksum: true, ecn: true, ..none }), 9);
    assert_eq!(bits(Offloads { checksum: true, tso4: true, tso6: true, uso: true, ..none }), 0x67);
}
