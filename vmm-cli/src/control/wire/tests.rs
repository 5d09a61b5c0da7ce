//! Requests as they are read, and as they are written.

use proptest::prelude::*;
use vmm_devices::rate_limiter::Limit;

use super::*;
use crate::control::balloon::BalloonSetting;
use crate::control::disks::{DiskRequest, NewSize};
use crate::control::limits::{NewLimit, NewLimits};
use crate::control::nets::NetRequest;
use crate::control::operations::Outcome;

fn refusal(line: &[u8]) -> (usize, String) {
    match parse(line).unwrap_err() {
        RequestError::NotUtf8 { column } => (column, "not UTF-8".into()),
        RequestError::Malformed { column, reason } => (column, reason),
        RequestError::TooLong => (0, "too long".into()),
    }
}

fn every_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        (0_u64..=60_000).prop_map(|ms| Operation::Pause { limit: Duration::from_millis(ms) }),
        (0_u64..=60_000).prop_map(|ms| Operation::DirtyRate { time: Duration::from_millis(ms) }),
        every_disk_request().prop_map(Operation::Disk),
        any::<Option<u64>>().prop_map(|requested| Operation::Memory { requested }),
        every_balloon_request().prop_map(Operation::Balloon),
        ("[a-zA-Z0-9_-]{1,20}", 0_u64..=60_000, any::<bool>()).prop_map(|(id, ms, force)| {
            let id = id.parse().unwrap();
            Operation::DeviceRemove(Removal { id, limit: Duration::from_millis(ms), force })
        }),
        prop::sample::select(&[
            "path=/a,format=raw",
            "path=/a,format=qcow2,backing=/b,backing_format=raw",
            "id=x,path=/a b/ü,format=raw,read_only,direct,engine=threads,queues=2,bandwidth=1M/1s+1G",
        ])
        .prop_map(|disk| {
            let roles = Roles { image: Some(1), backing: Some(0), ..Roles::default() };
            let device = NewDevice::Disk(Box::new(disk.parse().unwrap()));
            Operation::DeviceAdd(Addition { device, roles })
        }),
        prop::sample::select(&[
            "tap=a",
            "tap=b,create,vhost,mtu=9000",
            "tap=c,id=lan,mac=02:00:00:00:00:01,queues=2,receive_bandwidth=1M/1s+1G,receive_frames=1/1s,\
             transmit_bandwidth=2/1m,transmit_frames=3/1s+4",
        ])
        .prop_map(|net| Operation::DeviceAdd(NewDevice::Net(Box::new(net.parse().unwrap())).into())),
        every_net_request().prop_map(Operation::Net),
        prop::sample::select(vec![
            Operation::Devices,
            Operation::Vsock,
            Operation::Status,
            Operation::Resume,
            Operation::PowerButton,
            Operation::Reset,
            Operation::Quit,
            Operation::Stats { format: StatsFormat::Json },
            Operation::Stats { format: StatsFormat::Table },
        ]),
    ]
}

fn every_balloon_request() -> impl Strategy<Value = BalloonRequest> {
    let setting = (prop::option::of(0..=1_u64 << 28), prop::option::of(0..=3_600_000_u64));
    prop_oneof![
        Just(BalloonRequest::Show),
        Just(BalloonRequest::StartHinting),
        Just(BalloonRequest::StopHinting),
        setting.prop_map(|(pages, milliseconds)| BalloonRequest::Set(BalloonSetting {
            size: pages.map(|pages| pages * 4096),
            statistics_interval: milliseconds.map(Duration::from_millis),
        })),
    ]
}

fn every_change_of_limits() -> impl Strategy<Value = NewLimits> {
    let limit = (1..=u64::MAX, 1..3_600_000_u64, any::<u64>()).prop_map(|(tokens, ms, burst)| {
        NewLimit::To(Limit::new(tokens, Duration::from_millis(ms), burst).unwrap())
    });
    let limit = prop_oneof![Just(NewLimit::Same), Just(NewLimit::Lifted), limit];
    let limits = prop::array::uniform2(limit);
    limits.prop_map(|[bandwidth, operations]| NewLimits { bandwidth, operations })
}

fn every_net_request() -> impl Strategy<Value = NetRequest> {
    let limits = prop::array::uniform2(every_change_of_limits());
    ("[a-zA-Z0-9_-]{1,20}", limits).prop_map(|(net, [receive, transmit])| NetRequest {
        net: net.parse().unwrap(),
        receive,
        transmit,
    })
}

fn every_disk_request() -> impl Strategy<Value = DiskRequest> {
    let size = prop::option::of((any::<u64>(), any::<bool>()));
    let size = size.prop_map(|size| size.map(|(bytes, may_shrink)| NewSize { bytes, may_shrink }));
    let limits = every_change_of_limits().prop_map(DiskChange::Limits);
    let change = prop_oneof![size.prop_map(DiskChange::Resize), limits];
    ("[a-zA-Z0-9_-]{1,20}", change)
        .prop_map(|(disk, change)| DiskRequest { disk: disk.parse().unwrap(), change })
}

#[test]
fn a_request_is_read_with_any_spacing_and_order() {
    assert_eq!(parse(br#"{"verb":"status"}"#), Ok(Operation::Status));
    assert_eq!(parse(b" { \"verb\" :\t\"power-button\" } \r"), Ok(Operation::PowerButton));
    assert_eq!(parse(br#"{"verb":"pause"}"#), Ok(Operation::Pause { limit: DEFAULT_LIMIT }));
    let limit = Duration::from_millis(250);
    assert_eq!(parse(br#"{"limit":"250ms","verb":"pause"}"#), Ok(Operation::Pause { limit }));
    assert_eq!(parse(br#"{"verb":"\u0071uit"}"#), Ok(Operation::Quit));
}

#[test]
fn fault_c10_what_is_no_request_is_refused_with_its_place() {
    for (line, column, reason) in [
        ("", 1, "expected an object"),
        ("  status", 3, "expected an object"),
        (r#"["status"]"#, 1, "expected an object"),
        ("GET / HTTP/1.1\r", 1, "expected an object"),
        ("PRI * HTTP/2.0\r", 1, "expected an object"),
        (r#"{"verb":"status""#, 16, "EOF while parsing"),
        (r#"{"verb":"status"} x"#, 19, "trailing characters"),
        (r#"{"verb":"reboot"}"#, 17, "unknown verb `reboot`; the verbs are: status, pause"),
        (r#"{"verb":1}"#, 9, "invalid type: integer `1`"),
        (r#"{"verb":null}"#, 12, "invalid type: null"),
        (r#"{"vreb":"status"}"#, 17, "missing field `verb`"),
        (r#"{}"#, 2, "missing field `verb`"),
        (r#"{"verb":"status","limit":"1s"}"#, 24, "unknown field `limit`, expected `verb`"),
        (r#"{"verb":"pause","limti":"1s"}"#, 23, "unknown field `limti`, expected `verb` or `limit`"),
        (r#"{"verb":"status","verb":"quit"}"#, 23, "duplicate field `verb`"),
        (r#"{"verb":"pause","limit":1}"#, 25, "invalid type: integer `1`, expected a string"),
        (r#"{"verb":"pause","limit":"1"}"#, 28, "the limit `1` is no duration from 0s to 1m"),
        (r#"{"verb":"pause","limit":"2m"}"#, 29, "the limit `2m` is no duration from 0s to 1m"),
        (r#"{"verb":"stats","format":"xml"}"#, 31, "xml is not one of table, json"),
        (r#"{"verb":"stats","limit":"1s"}"#, 23, "unknown field `limit`, expected `verb` or `format`"),
        (r#"{"verb":"pause","limit":null}"#, 28, "invalid type: null"),
        (r#"{"verb":"disk-resize"}"#, 22, "missing field `disk`"),
        (r#"{"verb":"disk-limits","disk":"a b"}"#, 35, "\"a b\" is not 1 to 20 of the characters"),
        (r#"{"verb":"disk-resize","disk":"a","size":"1X"}"#, 45, "1X is not a size such as"),
        (r#"{"verb":"disk-resize","disk":"a","size":1}"#, 41, "invalid type: integer `1`, expected a string"),
        (r#"{"verb":"disk-resize","disk":"a","bandwidth":"1/1s"}"#, 44, "unknown field `bandwidth`"),
        (r#"{"verb":"disk-limits","disk":"a","operations":"1"}"#, 50, "1 is not a number and a duration"),
        (r#"{"verb":"memory","size":"1G"}"#, 23, "unknown field `size`, expected `verb` or `requested`"),
        (r#"{"verb":"memory","requested":"much"}"#, 36, "much is not a size such as"),
        (r#"{"verb":"device-remove"}"#, 24, "missing field `id`"),
        (r#"{"verb":"device-remove","id":"a/b"}"#, 35, "a/b is not 1 to 20 of the characters"),
        (
            r#"{"verb":"device-remove","id":"a","force":1}"#,
            42,
            "invalid type: integer `1`, expected a boolean",
        ),
        (r#"{"verb":"device-add","disk":{"path":"/x"}}"#, 42, "missing field `format`"),
        (r#"{"verb":"device-add"}"#, 21, "expected one device to add, `disk` or `net`"),
        (
            r#"{"verb":"device-add","net":{},"disk":{"path":"/x","format":"raw"}}"#,
            66,
            "expected one device to add, `disk` or `net`",
        ),
        (
            r#"{"verb":"device-add","disk":{"path":"/x","format":"raw"},"descriptors":{"tap":[0]}}"#,
            83,
            "the device has no descriptor `tap`",
        ),
        (
            r#"{"verb":"device-add","net":{"tap":"a"},"descriptors":{"backing":0}}"#,
            67,
            "the device has no descriptor `backing`",
        ),
        (r#"{"verb":"device-add","net":{},"descriptors":{"tap":[-1]}}"#, 54, "invalid value: integer `-1`"),
        (r#"{"verb":"device-add","net":{},"descriptors":{"file":0}}"#, 51, "unknown field `file`"),
        (r#"{"verb":"status","descriptors":{"image":0}}"#, 30, "unknown field `descriptors`"),
        (r#"{"verb":"device-add","net":{"fd":3}}"#, 36, "a number of a descriptor (fd) says nothing here"),
        (r#"{"verb":"device-add","net":{"tap":"a","mac":"1"}}"#, 48, "1 is not the address of one device"),
        (r#"{"verb":"net-limits"}"#, 21, "missing field `net`"),
        (r#"{"verb":"net-limits","net":"a","bandwidth":"1/1s"}"#, 42, "unknown field `bandwidth`"),
        (r#"{"verb":"net-limits","net":"a","receive_frames":"1"}"#, 52, "1 is not a number and a duration"),
        (r#"{"verb":"vsock","cid":3}"#, 21, "unknown field `cid`, expected `verb`"),
        (r#"{"verb":"device-add","disk":{"path":"x","format":"raw"}}"#, 56, "the path `x` is relative"),
        (
            r#"{"verb":"device-add","disk":{"path":"/x","format":"qcow2","backing":"y"}}"#,
            73,
            "the path `y` is relative",
        ),
        (r#"{"verb":"balloon","size":"1M"}"#, 24, "unknown field `size`, expected `verb`"),
        (r#"{"verb":"balloon-set","size":"1"}"#, 33, "1 is not a multiple of 4 KiB (4K)"),
        (r#"{"verb":"balloon-set","size":4096}"#, 33, "invalid type: integer `4096`, expected a string"),
        (r#"{"verb":"balloon-set","statistics_interval":"1"}"#, 48, "1 has no unit"),
        (r#"{"verb":"balloon-hinting"}"#, 26, "missing field `action`"),
        (
            r#"{"verb":"balloon-hinting","action":"go"}"#,
            39,
            "unknown variant `go`, expected `start` or `stop`",
        ),
        (r#"{"verb":"dirty-rate","time":"2m"}"#, 33, "the time `2m` is no duration from 0s to 1m"),
    ] {
        let (found_column, found) = refusal(line.as_bytes());
        assert!(found.starts_with(reason), "{line}: {found}");
        assert_eq!(found_column, column, "{line}: {found}");
    }
    assert_eq!(refusal(b"{\"verb\":\"\xff\"}"), (10, "not UTF-8".into()));
}

#[test]
fn fault_c10_nesting_of_any_depth_is_refused_wherever_it_stands() {
    let deep = "[".repeat(5000) + &"]".repeat(5000);
    for line in [
        deep.clone(),
        format!(r#"{{"verb":{deep}}}"#),
        format!(r#"{{"verb":"pause","limit":{deep}}}"#),
        format!(r#"{{"verb":"status","x":{deep}}}"#),
        format!(r#"{{"x":{deep}}}"#),
        r#"{"a":"#.repeat(5000),
    ] {
        assert!(matches!(parse(line.as_bytes()), Err(RequestError::Malformed { .. })), "{}", &line[..20]);
    }
}

#[test]
fn fault_c10_a_message_repeats_no_more_than_a_little() {
    for request in [r#"{"verb":"X"}"#, r#"{"verb":"status","X":1}"#, r#"{"verb":"pause","limit":"X"}"#] {
        let (_, reason) = refusal(request.replace('X', &"x".repeat(60_000)).as_bytes());
        assert!(reason.chars().count() <= LONGEST_MESSAGE + 1, "{reason}");
    }
    assert_eq!(refusal(&vec![b' '; MAX_REQUEST + 1]).1, "too long");
}

#[test]
fn the_first_error_is_an_answer_of_one_line() {
    let error = parse(b"{\"verb\":\"a\\nb\"}").unwrap_err();
    let answer = line(&Answer::<Outcome>::Error(error.into()));
    assert_eq!(answer.matches('\n').count(), 1);
    assert!(answer.starts_with(r#"{"error":{"code":"bad-request","message":"unknown verb `a"#), "{answer}");
    assert!(answer.ends_with("\"column\":15}}\n"), "{answer}");
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(operation in every_operation()) {
        let line = request(&operation);
        prop_assert_eq!(parse(line.strip_suffix('\n').unwrap().as_bytes()), Ok(operation));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = parse(&bytes);
    }

    /// Lines that are nearly right go deeper than random bytes do.
    #[test]
    fn no_request_that_is_nearly_right_panics(
        line in r#"\{"(verb|limit|x)":("(pause|status|1s|2m|)"|1|null|[\[\{]{0,3})(,"(verb|limit)":"(pause|1ms)")?\}?"#,
    ) {
        if let Ok(operation) = parse(line.as_bytes()) {
            let is_possible = operation == Operation::Status || operation.waits();
            prop_assert!(is_possible, "{:?}", operation);
        }
    }
}
