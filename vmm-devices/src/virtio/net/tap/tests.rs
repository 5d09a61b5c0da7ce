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

/// A name that no other process that runs these tests uses.
fn own_name(number: u8) -> String {
    format!("vt{number}-{}", std::process::id())
}

/// A TAP that is made for a test, where the host permits that.
fn created(name: &str, pairs: u16, mtu: u16) -> Option<Tap> {
    let source = TapSource::Created(name.into());
    match Tap::open(&TapOptions { source, pairs, mtu: Some(mtu) }) {
        Ok(tap) => Some(tap),
        Err(TapError::Device { .. } | TapError::MayNotCreate { .. }) => None,
        Err(error) => panic!("{error:?}"),
    }
}

fn exists(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").join(name).exists()
}

#[test]
fn a_tap_that_is_created_is_up_and_gone_with_the_last_who_has_it() {
    let name = &own_name(1);
    let Some(tap) = created(name, 1, 9000) else { return };
    assert_eq!((tap.name(), tap.mtu(), tap.pairs()), (&**name, Some(9000), 1));
    assert!(exists(name) && tap.offloads().tso4);
    let mut flags = Interface::new(name).unwrap();
    ioctl::ask(socket().unwrap(), Request::Flags, &mut flags).unwrap();
    assert_eq!(flags.flags() & libc::IFF_UP, libc::IFF_UP);
    let error = refusal(TapSource::Created(name.clone()), 1);
    assert!(matches!(error, TapError::Exists { .. }), "{error}");
    let error = refusal(TapSource::Existing(name.clone()), 1);
    assert!(matches!(error, TapError::Busy { .. }), "{error}");
    let error = refusal(TapSource::Existing(name.clone()), 2);
    assert!(matches!(error, TapError::OneQueue { .. }), "{error}");
    tap.leave(Offloads { checksum: true, ..Offloads::default() }).unwrap();
    drop(tap);
    assert!(!exists(name));
}

#[test]
fn a_tap_that_is_let_go_of_is_gone_though_its_descriptors_are_there() {
    let name = &own_name(4);
    let Some(tap) = created(name, 2, 1500) else { return };
    tap.queues()[0].let_go().unwrap();
    assert!(exists(name));
    tap.queues()[1].let_go().unwrap();
    assert!(!exists(name));
    assert_eq!(rustix::io::read(&*tap.queues()[0], &mut [0; 100]), Ok(0));
    assert!(!tap.take_again().unwrap(), "nothing has happened");
}

#[test]
fn descriptors_that_are_handed_over_are_the_same_tap() {
    let name = &own_name(2);
    let Some(tap) = created(name, 2, 1500) else { return };
    let numbers: Vec<_> = tap.queues().iter().map(AsRawFd::as_raw_fd).collect();
    let options = |numbers| TapOptions { source: TapSource::Descriptors(numbers), pairs: 1, mtu: None };
    let adopted = Tap::open(&options(numbers.clone())).unwrap();
    assert_eq!((adopted.name(), adopted.pairs()), (&**name, 2));
    for pairs in [1, 2, 1, 1, 2] {
        adopted.use_pairs(pairs).unwrap();
    }
    let blocking = ioctl::duplicate(numbers[0]).unwrap();
    rustix::fs::fcntl_setfl(&blocking, OFlags::empty()).unwrap();
    let error = Tap::open(&options(vec![blocking.as_raw_fd()])).unwrap_err().to_string();
    assert!(error.ends_with("blocks: whoever opens it has to set O_NONBLOCK"), "{error}");
    let wanted = TapOptions { mtu: Some(9000), ..options(vec![numbers[1]]) };
    let error = Tap::open(&wanted).unwrap_err();
    assert!(matches!(error, TapError::Mtu { wanted: 9000, mtu: 1500, .. }), "{error}");
}

#[test]
fn fault_b11_an_interface_that_is_gone_is_had_again_when_it_is_there() {
    let name = &own_name(3);
    let Some(tap) = created(name, 2, 1500) else { return };
    tap.use_pairs(1).unwrap();
    let news = tap.news().unwrap();
    assert!(!tap.take_again().unwrap(), "nothing has happened");
    // As `ip link delete` does.
    let [first, second] = [0, 1].map(|index| Arc::clone(&tap.queues()[index]));
    if !delete(name) {
        return;
    }
    let mut frame = [0; 100];
    let error = rustix::io::read(&*first, &mut frame).unwrap_err();
    assert_eq!(error.raw_os_error(), libc::EBADFD);
    news.take();
    assert!(!tap.take_again().unwrap(), "one that is not there is not created");
    let other = created(name, 2, 1500).unwrap();
    news.take();
    assert!(tap.take_again().unwrap());
    for queue in [first, second] {
        assert_eq!(rustix::io::read(&*queue, &mut frame).unwrap_err().raw_os_error(), libc::EAGAIN);
    }
    drop(other);
}

/// Removes an interface; whether the host has the program for that.
fn delete(name: &str) -> bool {
    let status = std::process::Command::new("ip").args(["link", "delete", name]).status();
    assert!(status.as_ref().map_or(true, std::process::ExitStatus::success), "ip link delete {name}");
    status.is_ok()
}

#[test]
fn fault_c10_what_is_handed_over_and_is_no_tap_is_refused() {
    let file = || tempfile::tempfile().unwrap().into();
    let handed = |count| HandedTap { queues: (0..count).map(|_| file()).collect(), again: None };
    let refusal = |handed, pairs| Tap::adopt("tap9", handed, pairs, None).unwrap_err().to_string();
    assert_eq!(refusal(handed(1), 1), "the descriptor 0 is no TAP that belongs to an interface");
    let error = refusal(handed(3), 2);
    assert!(error.starts_with("there are 3 descriptors of the interface tap9, and 2 are needed"), "{error}");
    assert!(Tap::adopt("a/b", handed(1), 1, None).is_err());
}

#[test]
fn a_tap_that_is_handed_over_is_the_same_and_is_had_again() {
    let name = &own_name(5);
    let Some(tap) = created(name, 2, 1500) else { return };
    let adopt = |handed, pairs| Tap::adopt(name, handed, pairs, None);
    let refusal = |handed| adopt(handed, 2).unwrap_err().to_string();
    let bad = HandedTap { again: None, ..tap.hand_over().unwrap() };
    let error = Tap::adopt("tap9", bad, 2, None).unwrap_err().to_string();
    assert_eq!(error, format!("the descriptors are of the interface {name}, and not of tap9"));
    for (pick, problem) in
        [(0, "the socket for interfaces is no datagram socket"), (1, "for news is no netlink socket")]
    {
        let mut handed = tap.hand_over().unwrap();
        let again = handed.again.as_mut().unwrap();
        *[&mut again.interfaces, &mut again.news][pick] = tempfile::tempfile().unwrap().into();
        let error = refusal(handed);
        assert!(error.contains(problem), "{error}");
    }
    let same = adopt(tap.hand_over().unwrap(), 2).unwrap();
    assert_eq!((same.name(), same.mtu(), same.pairs()), (&**name, Some(1500), 2));
    let without = adopt(HandedTap { again: None, ..tap.hand_over().unwrap() }, 2).unwrap();
    assert!(without.mtu().is_none() && without.news().is_none());
    drop((tap, without));
    assert!(exists(name), "it is this one's too");
    if !delete(name) {
        return;
    }
    let news = same.news().unwrap();
    let other = created(name, 2, 1500).unwrap();
    news.take();
    assert!(same.take_again().unwrap());
    drop((same, other));
    assert!(!exists(name));
}
