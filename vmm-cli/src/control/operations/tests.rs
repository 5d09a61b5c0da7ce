//! Operations on a machine that does what it is told, or does not answer.

use super::*;
use crate::config::DeviceId;
use crate::control::testing::FakeMachine;

const PAUSE: Operation = Operation::Pause { limit: Duration::from_secs(1) };
const STATS: Operation = Operation::Stats { format: StatsFormat::Json };

struct Bench {
    machine: Arc<FakeMachine>,
    current: Arc<Current>,
    asked: VmEvents,
    operations: Operations,
}

fn bench() -> Bench {
    let (machine, current) = (Arc::new(FakeMachine::default()), Arc::new(Current::default()));
    let asked = VmEvents::new().unwrap();
    let facts = Facts { vcpus: 2, memory: MemorySize::DEFAULT };
    let operations = Operations::new(facts, Arc::clone(&current), asked.clone());
    Bench { machine, current, asked, operations }
}

fn state(operations: &Operations) -> State {
    match operations.execute(Operation::Status).unwrap() {
        Outcome::Status(status) => status.state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_machine_there_is_a_status_and_a_way_to_quit() {
    let bench = bench();
    assert_eq!(state(&bench.operations), State::Starting);
    for operation in [PAUSE, Operation::Resume, Operation::PowerButton, Operation::Reset, STATS] {
        let refused = bench.operations.execute(operation.clone());
        assert_eq!(refused, Err(OperationError::Starting), "{operation:?}");
    }
    assert_eq!(bench.operations.execute(Operation::Quit), Ok(Outcome::Passed {}));
    assert_eq!(bench.asked.get(), Some(&VmEvent::UserStop(ASKED_BY)));
}

#[test]
fn pause_and_resume_may_come_twice() {
    let bench = bench();
    let _published = bench.current.publish(Arc::clone(&bench.machine) as _);
    for (operation, state) in [(PAUSE, State::Paused), (Operation::Resume, State::Running)] {
        for _ in 0..2 {
            assert_eq!(bench.operations.execute(operation.clone()), Ok(Outcome::Reached { state }));
            assert_eq!(super::tests::state(&bench.operations), state);
        }
    }
}

#[test]
fn fault_d5_a_pause_that_a_vcpu_does_not_answer_names_it_and_stays_asked_for() {
    let bench = bench();
    bench.machine.answers_no_pause();
    let _published = bench.current.publish(Arc::clone(&bench.machine) as _);
    let operation = Operation::Pause { limit: Duration::ZERO };
    let refused = OperationError::NoAnswer { vcpu: 1, limit: Duration::ZERO };
    assert_eq!(bench.operations.execute(operation), Err(refused));
    assert_eq!(state(&bench.operations), State::Pausing);
    assert_eq!(bench.operations.execute(Operation::Resume), Ok(Outcome::Reached { state: State::Running }));
}

#[test]
fn a_guest_that_does_not_listen_is_an_error() {
    let bench = bench();
    let _published = bench.current.publish(Arc::clone(&bench.machine) as _);
    assert_eq!(bench.operations.execute(Operation::PowerButton), Err(OperationError::NotListening));
    bench.machine.listens();
    assert_eq!(bench.operations.execute(Operation::PowerButton), Ok(Outcome::Passed {}));
}

#[test]
fn after_its_end_a_machine_has_a_status_and_takes_nothing_else() {
    let bench = bench();
    let published = bench.current.publish(Arc::clone(&bench.machine) as _);
    assert_eq!(bench.operations.execute(Operation::Reset), Ok(Outcome::Passed {}));
    for _ in 0..2 {
        assert_eq!(state(&bench.operations), State::Stopping);
        for operation in [PAUSE, Operation::Resume, Operation::PowerButton, Operation::Reset] {
            assert_eq!(bench.operations.execute(operation), Err(OperationError::Stopping));
        }
        assert_eq!(bench.operations.execute(Operation::Quit), Ok(Outcome::Passed {}));
    }
    drop(published);
    assert_eq!(state(&bench.operations), State::Stopping);
}

#[test]
fn statistics_come_for_programs_and_for_people() {
    let bench = bench();
    let _published = bench.current.publish(Arc::clone(&bench.machine) as _);
    let Ok(Outcome::Statistics(report)) = bench.operations.execute(STATS) else { panic!() };
    assert_eq!(report["vcpus"][1]["monitor"]["port_reads"], 2);
    let people = Operation::Stats { format: StatsFormat::Table };
    let Ok(Outcome::Table { table }) = bench.operations.execute(people) else { panic!() };
    assert!(table.starts_with("vCPUs, counted by vmm-cli"), "{table}");
}

#[test]
fn devices_come_and_go_and_their_errors_are_passed_on() {
    let bench = bench();
    let execute = |operation| bench.operations.execute(operation);
    let kept = || "kept".parse::<DeviceId>().unwrap();
    let disk = Box::new("id=kept,path=/x,format=raw".parse().unwrap());
    let add = Operation::DeviceAdd(crate::control::devices::NewDevice::Disk(disk).into());
    let remove = |force| {
        let limit = Duration::from_secs(1);
        Operation::DeviceRemove(Removal { id: kept(), limit, force })
    };
    assert_eq!(execute(add.clone()), Err(OperationError::Starting));
    let _published = bench.current.publish(Arc::clone(&bench.machine) as _);
    assert!(add.waits() && remove(false).waits() && !Operation::Devices.waits());
    let Ok(Outcome::Added(Added { device, notified: true })) = execute(add.clone()) else { panic!() };
    assert_eq!(execute(Operation::Devices), Ok(Outcome::Devices { devices: vec![device] }));
    let taken = DeviceError::IdTaken { id: kept() };
    assert_eq!(execute(add), Err(OperationError::Device(taken)));
    let error = execute(remove(false)).unwrap_err().to_string();
    assert!(
        error.starts_with("the guest has not given kept back within 1s; it is still asked to"),
        "{error}"
    );
    assert_eq!(execute(remove(true)), Ok(Outcome::Passed {}));
    let unknown = DeviceError::UnknownId { id: kept() };
    assert_eq!(execute(remove(true)), Err(OperationError::Device(unknown)));
}

#[test]
fn memory_is_asked_for_and_told_of() {
    let bench = bench();
    let execute = |requested| bench.operations.execute(Operation::Memory { requested });
    assert_eq!(execute(None), Err(OperationError::Starting));
    let _published = bench.current.publish(Arc::clone(&bench.machine) as _);
    let status = MemoryStatus { plugged: 0, requested: 4096, size: 8192, block: 4096 };
    assert_eq!(execute(Some(4096)), Ok(Outcome::Memory(status)));
    let refused = MemoryRefusal::BadSize("8193 bytes are too many".into());
    assert_eq!(execute(Some(8193)), Err(OperationError::Memory(refused)));
    assert!(!Operation::Memory { requested: Some(0) }.waits());
}

#[test]
fn status_tells_what_was_configured_and_the_age_of_this_life() {
    let bench = bench();
    let _published = bench.current.publish(Arc::clone(&bench.machine) as _);
    let Ok(Outcome::Status(status)) = bench.operations.execute(Operation::Status) else { panic!() };
    assert_eq!((status.schema, status.vcpus, status.memory), (1, 2, MemorySize::DEFAULT));
    assert_eq!((status.state, status.pid), (State::Running, std::process::id()));
    assert!(status.uptime_ms.is_some());
}
