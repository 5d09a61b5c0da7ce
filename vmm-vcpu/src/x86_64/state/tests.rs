//! The serde form, the versions, and what a state from anywhere can do.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::restore::Prepared;
use super::*;

/// A state in which no two neighbours are equal.
fn example() -> VcpuState {
    let mut state = VcpuState {
        version: StateVersion::CURRENT,
        index: 3,
        cpuid: vec![CpuidEntry { function: 1, index: 0, flags: 0, eax: 1, ebx: 2, ecx: 3, edx: 4 }],
        tsc_khz: 2_400_000,
        regs: kvm_regs { rax: 1, r15: u64::MAX, rip: 3, rflags: 2, ..Default::default() },
        sregs: kvm_sregs2 { cr0: 0x8000_0011, efer: 0x500, pdptrs: [1, 2, 3, 4], ..Default::default() },
        xsave: (0..=255).collect(),
        xcrs: vec![Xcr { index: 0, value: 7 }],
        debug_regs: kvm_debugregs { db: [1, 2, 3, 4], dr6: 5, dr7: 6, ..Default::default() },
        lapic: vec![0xa5; 1024],
        msrs: vec![Msr { index: 0x10, value: 9 }],
        events: kvm_vcpu_events { flags: 0xd, exception_payload: 8, ..Default::default() },
        mp_state: 3,
        nested: None,
    };
    state.sregs.cs.type_ = 0xb;
    state.sregs.gdt.limit = 31;
    state.events.nmi.masked = 1;
    state.events.smi.latched_init = 1;
    state.events.interrupt.nr = 0x50;
    state.events.exception.error_code = 7;
    state.events.triple_fault.pending = 1;
    state
}

fn json_of(state: &VcpuState) -> Value {
    serde_json::to_value(state).unwrap()
}

#[test]
fn a_state_is_the_same_after_it_was_written_and_read() {
    let state = example();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<VcpuState>(&text).unwrap(), state);
}

#[test]
fn the_form_names_every_register_and_no_padding() {
    let form = json_of(&example());
    assert_eq!(form["version"], json!({ "major": 1, "minor": 0 }));
    assert_eq!(form["regs"]["r15"], json!(u64::MAX));
    assert_eq!(form["sregs"]["cs"]["type"], json!(0xb));
    assert_eq!(form["sregs"]["gdt"], json!({ "base": 0, "limit": 31 }));
    assert_eq!(form["events"]["nmi"], json!({ "injected": 0, "pending": 0, "masked": 1 }));
    let text = form.to_string();
    assert!(!text.contains("pad") && !text.contains("reserved"), "{text}");
}

#[test]
fn the_version_is_the_first_thing_in_the_form() {
    let text = serde_json::to_string(&example()).unwrap();
    assert!(text.starts_with(r#"{"version":{"major":1,"#), "{text}");
}

#[test]
fn fault_e2_another_major_or_a_newer_minor_version_is_not_known() {
    let StateVersion { major, minor } = StateVersion::CURRENT;
    assert!(StateVersion { major, minor }.is_known());
    assert!(!StateVersion { major: major + 1, minor }.is_known());
    assert!(!StateVersion { major: major - 1, minor }.is_known());
    assert!(!StateVersion { major, minor: minor + 1 }.is_known());
    let error =
        StateError::Version { found: StateVersion { major: 7, minor: 2 }, supported: StateVersion::CURRENT };
    assert_eq!(error.to_string(), "a vCPU state of version 7.2 cannot be restored: this program knows 1.0");
}

#[test]
fn fault_e1_a_part_of_a_wrong_length_is_named() {
    let refused = |change: fn(&mut VcpuState)| {
        let mut state = example();
        change(&mut state);
        match Prepared::new(&state, 256) {
            Err(StateError::Length { index: 3, part, .. }) => part,
            Err(other) => panic!("{other}"),
            Ok(_) => "none",
        }
    };
    assert_eq!(refused(|_| ()), "none");
    assert_eq!(refused(|state| state.xsave.push(1)), "xsave");
    assert_eq!(refused(|state| state.xcrs = vec![Xcr { index: 0, value: 0 }; 17]), "xcrs");
    assert_eq!(refused(|state| state.lapic.truncate(1023)), "lapic");
    assert_eq!(refused(|state| state.nested = Some(vec![0; 128])), "nested");
    assert_eq!(refused(|state| state.cpuid = vec![state.cpuid[0]; 257]), "cpuid");
}

/// Does with a state what can be done with it before KVM is asked.
fn use_up(state: &VcpuState) {
    let _ = Prepared::new(state, 4096);
    let _ = cpuid::differences(&state.cpuid, &example().cpuid);
    let _ = cpuid::has_virtualization(&state.cpuid);
    let _ = msrs::to_restore(&state.msrs, &example().msrs);
    let _ = registers::to_sregs(&state.sregs);
    let _ = state.version.is_known();
}

/// Replaces the value that stands at `place` of all values of `form`.
fn replace(form: &mut Value, place: &mut usize, with: &Value) {
    match form {
        Value::Array(values) => values.iter_mut().for_each(|value| replace(value, place, with)),
        Value::Object(values) => values.values_mut().for_each(|value| replace(value, place, with)),
        value => {
            if *place == 0 {
                *value = with.clone();
            }
            *place = place.wrapping_sub(1);
        }
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..5000).prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn fault_e1_any_bytes_are_a_state_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        if let Ok(state) = serde_json::from_slice::<VcpuState>(&bytes) {
            use_up(&state);
        }
    }

    #[test]
    fn fault_e1_a_truncated_or_changed_state_is_a_state_or_an_error(
        length in 0_usize..8192,
        flips in proptest::collection::vec((0_usize..8192, any::<u8>()), 0..4),
    ) {
        let mut bytes = serde_json::to_vec(&example()).unwrap();
        for (at, byte) in flips {
            if let Some(changed) = bytes.get_mut(at) {
                *changed = byte;
            }
        }
        bytes.truncate(length);
        if let Ok(state) = serde_json::from_slice::<VcpuState>(&bytes) {
            use_up(&state);
        }
    }

    #[test]
    fn fault_e1_any_value_in_any_place_is_a_state_or_an_error(mut place in 0_usize..2000, value in any_value()) {
        let mut form = json_of(&example());
        replace(&mut form, &mut place, &value);
        if let Ok(state) = serde_json::from_value::<VcpuState>(form) {
            use_up(&state);
        }
    }
}
