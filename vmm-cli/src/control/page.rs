//! The user's page, `docs/control.md`, compared with the code.

use std::time::Duration;

use serde_json::Value;

use crate::config::{DeviceId, StatsFormat};

use super::balloon::{BalloonRefusal, BalloonReport};
use super::devices::{Added, DeviceError};
use super::disks::{DiskChange, DiskOutcome, DiskRefusal, SETTLE_LIMIT};
use super::memory::{MemoryRefusal, MemoryStatus};
use super::nets::{NetLimits, NetRefusal};
use super::operations::{DirtyRate, Operation, OperationError, Outcome, Status};
use super::vsock::{NoVsock, VsockStatus};
use super::wire::{self, Answer, ErrorBody, ErrorCode};
use super::{arrivals, connection, server};

const PAGE: &str = include_str!("../../../docs/control.md");

const CODES: [ErrorCode; 33] = [
    ErrorCode::BadRequest,
    ErrorCode::TooLong,
    ErrorCode::Starting,
    ErrorCode::Stopping,
    ErrorCode::NoAnswer,
    ErrorCode::Resumed,
    ErrorCode::NotListening,
    ErrorCode::Busy,
    ErrorCode::NotTracked,
    ErrorCode::NoSuchDisk,
    ErrorCode::DiskRefused,
    ErrorCode::DiskFailed,
    ErrorCode::NoSuchNet,
    ErrorCode::NetRefused,
    ErrorCode::NoHotplug,
    ErrorCode::BadSize,
    ErrorCode::Exhausted,
    ErrorCode::NoBus,
    ErrorCode::NoSlot,
    ErrorCode::IdTaken,
    ErrorCode::UnknownId,
    ErrorCode::NotRemovable,
    ErrorCode::BadDisk,
    ErrorCode::BadNet,
    ErrorCode::BadDescriptors,
    ErrorCode::NoDescriptor,
    ErrorCode::InUse,
    ErrorCode::NoBalloon,
    ErrorCode::BalloonRefused,
    ErrorCode::NoVsock,
    ErrorCode::Forbidden,
    ErrorCode::Idle,
    ErrorCode::Evicted,
];

/// The examples: each request with its answer.
fn examples() -> Vec<(&'static str, &'static str)> {
    let blocks = PAGE.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines: Vec<&str> = blocks.flat_map(str::lines).collect();
    assert!(lines.len().is_multiple_of(2));
    lines.chunks(2).map(|pair| (pair[0], pair[1])).collect()
}

fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value).unwrap() {
        Value::String(word) => word,
        other => panic!("{other}"),
    }
}

#[test]
fn each_request_is_taken_and_each_answer_is_what_the_code_writes() {
    for (request, answer) in examples() {
        let operation = wire::parse(request.as_bytes());
        let written = match serde_json::from_str::<Answer<Value>>(answer).unwrap() {
            Answer::Error(error) => {
                if error.code != ErrorCode::BadRequest {
                    operation.unwrap();
                }
                wire::line(&Answer::<()>::Error(error))
            }
            Answer::Ok(value) => match operation.unwrap() {
                Operation::Status => {
                    wire::line(&Answer::Ok(serde_json::from_value::<Status>(value).unwrap()))
                }
                Operation::DirtyRate { .. } => {
                    wire::line(&Answer::Ok(serde_json::from_value::<DirtyRate>(value).unwrap()))
                }
                Operation::Disk(request) => wire::line(&Answer::Ok(match request.change {
                    DiskChange::Resize(_) => DiskOutcome::Size(serde_json::from_value(value).unwrap()),
                    DiskChange::Limits(_) => DiskOutcome::Limits(serde_json::from_value(value).unwrap()),
                })),
                Operation::Net(_) => {
                    wire::line(&Answer::Ok(serde_json::from_value::<NetLimits>(value).unwrap()))
                }
                Operation::Vsock => {
                    wire::line(&Answer::Ok(serde_json::from_value::<VsockStatus>(value).unwrap()))
                }
                Operation::Memory { .. } => {
                    wire::line(&Answer::Ok(serde_json::from_value::<MemoryStatus>(value).unwrap()))
                }
                Operation::Pause { .. } | Operation::Resume => {
                    let state = serde_json::from_value(value["state"].clone()).unwrap();
                    wire::line(&Answer::Ok(Outcome::Reached { state }))
                }
                Operation::Devices => {
                    let devices = serde_json::from_value(value["devices"].clone()).unwrap();
                    wire::line(&Answer::Ok(Outcome::Devices { devices }))
                }
                Operation::DeviceAdd(_) => {
                    wire::line(&Answer::Ok(serde_json::from_value::<Added>(value).unwrap()))
                }
                Operation::Balloon(_) => {
                    wire::line(&Answer::Ok(serde_json::from_value::<BalloonReport>(value).unwrap()))
                }
                Operation::PowerButton | Operation::Reset | Operation::Quit | Operation::DeviceRemove(_) => {
                    wire::line(&Answer::Ok(Outcome::Passed {}))
                }
                Operation::Stats { format: StatsFormat::Json } => {
                    wire::line(&Answer::Ok(Outcome::Statistics(value)))
                }
                Operation::Stats { format: StatsFormat::Table } => {
                    let table = value["table"].as_str().unwrap().to_owned();
                    wire::line(&Answer::Ok(Outcome::Table { table }))
                }
            },
        };
        assert_eq!(written.trim_end(), answer);
    }
}

#[test]
fn the_errors_of_the_examples_have_the_words_of_the_code() {
    let not_ejected = DeviceError::NotEjected {
        id: "scratch".parse().unwrap(),
        limit: Duration::from_secs(1),
        listens: true,
    };
    let errors: Vec<ErrorBody> = vec![
        wire::parse(br#"{"verb":"reboot"}"#).unwrap_err().into(),
        OperationError::NoAnswer { vcpu: 3, limit: Duration::from_millis(250) }.into(),
        OperationError::NotListening.into(),
        OperationError::Tracking.into(),
        OperationError::from(DiskRefusal::Unknown {
            id: DeviceId::of_disk(7),
            disks: vec![DeviceId::of_disk(0)],
        })
        .into(),
        OperationError::Device(not_ejected).into(),
        OperationError::from(NetRefusal::Unknown {
            id: DeviceId::of_net(7),
            nets: vec![DeviceId::of_net(0)],
        })
        .into(),
        OperationError::from(NetRefusal::NoLimits { id: DeviceId::of_net(1) }).into(),
        OperationError::from(NoVsock).into(),
        OperationError::Memory(MemoryRefusal::None).into(),
        OperationError::from(BalloonRefusal::NoBalloon).into(),
    ];
    for error in errors {
        let line = wire::line(&Answer::<()>::Error(error));
        assert!(examples().iter().any(|(_, answer)| *answer == line.trim_end()), "{line}");
    }
}

#[test]
fn every_verb_has_a_section_and_an_example() {
    for (verb, _) in wire::VERBS {
        assert!(PAGE.contains(&format!("### `{verb}`\n")), "{verb}");
        let request = format!(r#"{{"verb":"{verb}""#);
        assert!(examples().iter().any(|(line, _)| line.starts_with(&request)), "{verb}");
    }
}

#[test]
fn every_error_code_has_a_row_and_every_row_its_code() {
    let table = PAGE.split("| code | meaning | connection |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    let rows: Vec<&str> =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, CODES.map(word));
}

#[test]
fn every_limit_is_the_one_of_the_code() {
    for (row, value) in [
        ("| request | ", wire::MAX_REQUEST.to_string() + " bytes |"),
        ("| connections | ", server::MOST_CONNECTIONS.to_string() + ";"),
        (
            "| operations that wait (`pause`, `dirty-rate`, `disk-resize`, `device-add`, `device-remove`) | ",
            server::MOST_WAITING.to_string() + " |",
        ),
        ("| descriptors of a request | ", arrivals::MOST_DESCRIPTORS.to_string() + " |"),
        ("| idle time | ", connection::IDLE.as_secs().to_string() + " seconds |"),
    ] {
        assert!(PAGE.contains(&format!("{row}{value}")), "{row}{value}");
    }
    assert!(PAGE.contains("`5s` if it is left out") && wire::DEFAULT_LIMIT == Duration::from_secs(5));
    assert!(PAGE.contains("within 5 seconds") && SETTLE_LIMIT == Duration::from_secs(5));
    assert!(PAGE.contains("from `0s` to `1m`") && wire::LONGEST_LIMIT == Duration::from_secs(60));
    assert!(PAGE.contains(&format!("{} operations wait already", server::MOST_WAITING)));
    assert!(PAGE.contains(&format!("{} seconds without", connection::IDLE.as_secs())));
}

#[test]
fn the_exit_codes_of_ctl_are_those_of_its_help() {
    for code in 0..=3 {
        assert!(PAGE.contains(&format!("\n| {code} | ")), "{code}");
        assert!(crate::args::CTL_HELP.contains(&format!("\n  {code}  ")), "{code}");
    }
}
