//! The two ways to configuration space, against each other and against what each byte should be.

use std::sync::mpsc::{TryRecvError, channel};

use proptest::prelude::*;
use vmm_core::{VmEvent, VmEvents};

use super::*;
use crate::legacy::ResetControl;
use crate::pci::testing::{TestHost, finish, named};
use crate::pci::{ConfigurationAddress, ConfigurationData, ConfigurationPorts, Ecam};
use crate::{Bus, BusDevice};

const ECAM: u64 = 0xe000_0000;

struct Machine {
    host: TestHost,
    root: Arc<PciRoot>,
    ports: Bus,
    memory: Bus,
    events: VmEvents,
}

fn machine() -> Machine {
    let host = TestHost::new();
    let root = Arc::new(PciRoot::new(&host.host()).unwrap());
    let (ports, memory, events) = (Bus::new("pio"), Bus::new("ecam"), VmEvents::new().unwrap());
    let registers = ConfigurationPorts::new(Arc::clone(&root));
    let address = ConfigurationAddress::new(Arc::clone(&registers), ResetControl::new(events.clone()));
    let insert = |bus: &Bus, (start, length), device: Arc<dyn BusDevice>| {
        bus.insert(start, length, "test", device).unwrap();
    };
    insert(&ports, ConfigurationAddress::PORTS, Arc::new(address));
    insert(&ports, ConfigurationData::PORTS, Arc::new(ConfigurationData::new(registers)));
    insert(&memory, (ECAM, Ecam::LENGTH), Arc::new(Ecam::new(Arc::clone(&root))));
    Machine { host, root, ports, memory, events }
}

impl Machine {
    fn select(&self, address: u32) {
        finish(self.ports.write(0xcf8, 4, &address.to_le_bytes()));
    }

    fn port(&self, port: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.ports.read(port, length, &mut data);
        data
    }

    fn memory(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read(ECAM + offset, length, &mut data);
        data
    }

    fn add(&self, id: u8) -> PciAddress {
        self.root.insert(named(&self.host, id).1).unwrap()
    }
}

#[test]
fn the_host_bridge_is_function_0_of_device_0() {
    let machine = machine();
    machine.select(0x8000_0000);
    assert_eq!(machine.port(0xcfc, 4), [0x36, 0x1b, 0x08, 0x00]);
    assert_eq!(machine.memory(8, 4), [0, 0, 0, 6]);
}

#[test]
fn where_no_function_is_all_reads_as_ones_and_writes_are_lost() {
    let machine = machine();
    for (selected, port, length) in [
        (0x8000_0800, 0xcfc, 4),
        (0x8000_0100, 0xcfd, 1),
        // Another bus; not enabled.
        (0x8001_0000, 0xcfc, 4),
        (0x0000_0000, 0xcfc, 2),
    ] {
        machine.select(selected);
        finish(machine.ports.write(port, length, &vec![0; length]));
        assert_eq!(machine.port(port, length), vec![0xff; length], "{selected:#x}");
    }
    for offset in [0x1000, 0x8000, 0xf_fffc] {
        finish(machine.memory.write(ECAM + offset, 4, &[0; 4]));
        assert_eq!(machine.memory(offset, 4), [0xff; 4]);
    }
    // A conventional function ends after 256 bytes.
    assert_eq!(machine.memory(0xfc, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(machine.memory(0x100, 4), [0xff; 4]);
}

#[test]
fn only_an_access_to_all_four_bytes_is_one_to_the_address_register() {
    let machine = machine();
    machine.select(0xffff_ffff);
    assert_eq!(machine.port(0xcf8, 4), 0x80ff_fffcu32.to_le_bytes(), "reserved bits are zero");
    for (port, length) in [(0xcf8, 1), (0xcf8, 2), (0xcfa, 2), (0xcfb, 1)] {
        finish(machine.ports.write(port, length, &vec![0; length]));
        assert_eq!(machine.port(port, length), vec![0xff; length]);
    }
    assert_eq!(machine.port(0xcf8, 4), 0x80ff_fffcu32.to_le_bytes());
    // Bit 2 of the second byte, as part of an address.
    machine.select(0x8000_0400);
    assert_eq!(machine.events.get(), None);
    finish(machine.ports.write(0xcf9, 1, &[6]));
    assert_eq!(machine.events.get(), Some(&VmEvent::Reset("port 0xcf9")));
}

#[test]
fn an_access_across_two_functions_is_one_to_each() {
    let machine = machine();
    machine.add(1);
    assert_eq!(machine.memory(0x7ffe, 4), [0xff, 0xff, 0x34, 0x12]);
}

#[test]
fn functions_take_devices_first_and_say_when_they_are_several() {
    let machine = machine();
    let addresses: Vec<_> = (0..31).map(|_| machine.add(1)).collect();
    assert_eq!((addresses[0].to_string(), addresses[30].to_string()), ("00:01.0".into(), "00:1f.0".into()));
    assert_eq!(machine.memory(0x800e, 1), [0]);
    assert_eq!(machine.add(2).to_string(), "00:01.1");
    assert_eq!((machine.memory(0x800e, 1), machine.memory(0x900e, 1)), (vec![0x80], vec![0]));
    assert_eq!(machine.memory(0x800c, 4), [0, 0, 0x80, 0]);
}

#[test]
fn a_full_bus_refuses_the_next_function() {
    let machine = machine();
    let bare = || {
        let configuration = Configuration::new(HOST_BRIDGE);
        let device = Arc::new(HostBridge);
        Function::new("bare", configuration, device, None, machine.host.host()).unwrap()
    };
    for _ in 0..31 * 8 {
        machine.root.insert(bare()).unwrap();
    }
    assert_eq!(machine.root.insert(bare()), Err(RootError::Full));
}

#[test]
fn a_function_that_is_removed_is_gone_with_its_bars() {
    let machine = machine();
    let address = machine.add(5);
    let bar = u64::from(u32::from_le_bytes(machine.memory(0x8010, 4).try_into().unwrap()));
    finish(machine.memory.write(ECAM + 0x8004, 2, &[6, 0]));
    assert_eq!(machine.host.who(bar), 5);
    machine.root.remove(address).unwrap();
    assert_eq!((machine.host.who(bar), machine.memory(0x8000, 4)), (0xff, vec![0xff; 4]));
    assert_eq!(machine.root.remove(address), Err(RootError::NotFound(address)));
    assert_eq!(machine.add(6), address);
}

#[test]
fn a_function_is_put_where_it_is_to_be_and_nowhere_else() {
    let machine = machine();
    assert_eq!(machine.root.free_devices(), !1);
    let place = PciAddress::new(7, 0).unwrap();
    machine.root.insert_at(place, named(&machine.host, 7).1).unwrap();
    assert_eq!(machine.memory(7 * 0x8000, 2), [0x34, 0x12]);
    assert_eq!(machine.root.free_devices(), !0x81);
    let again = machine.root.insert_at(place, named(&machine.host, 8).1);
    assert_eq!(again, Err(RootError::Taken(place)));
    // The one that was refused keeps no place for its BARs.
    assert_eq!(machine.add(1).to_string(), "00:01.0");
    let bar = |at| u32::from_le_bytes(machine.memory(at, 4).try_into().unwrap());
    assert_eq!(bar(0x8010), bar(7 * 0x8000 + 0x10) + 0x1000);
}

#[test]
fn a_new_function_is_placed_beside_the_bars_that_software_has_moved() {
    let machine = machine();
    machine.add(1);
    // To where the next one would be placed.
    finish(machine.memory.write(ECAM + 0x8010, 4, &0xc000_1000u32.to_le_bytes()));
    finish(machine.memory.write(ECAM + 0x8004, 2, &[2, 0]));
    assert_eq!(machine.host.who(0xc000_1000), 1);
    let second = machine.add(2);
    let at = u64::from(second.device()) * 0x8000;
    let bar = u64::from(u32::from_le_bytes(machine.memory(at + 0x10, 4).try_into().unwrap()));
    finish(machine.memory.write(ECAM + at + 4, 2, &[2, 0]));
    assert_eq!((machine.host.who(0xc000_1000), machine.host.who(bar)), (1, 2));
}

#[test]
fn a_function_that_is_removed_later_has_gone_when_that_is_said() {
    let machine = machine();
    let (device, function) = named(&machine.host, 5);
    let address = machine.root.insert(function).unwrap();
    finish(machine.memory.write(ECAM + 0x8004, 2, &[6, 0]));
    let poster = machine.host.reconfigure.poster();
    for expected in [Ok(()), Err(RootError::NotFound(address))] {
        let end = machine.host.reconfigure.keep_busy();
        let ((sender, done), device) = (channel(), Arc::clone(&device));
        let told = move |result| sender.send((result, Arc::strong_count(&device))).unwrap();
        machine.root.remove_later(address, &poster, told).unwrap();
        // A change that has the function too, and is made after it was taken off the bus.
        let unfinished = machine.memory.write(ECAM + 0x8004, 2, &[0, 0]);
        drop(end);
        finish(unfinished);
        // The device is the test's, and the closure's.
        assert_eq!(done.recv().unwrap(), (expected, 2));
    }
    assert_eq!(machine.memory(0x8000, 4), [0xff; 4]);
}

#[test]
fn nobody_waits_for_a_function_that_goes_with_the_machine() {
    let host = TestHost::new();
    let root = Arc::new(PciRoot::new(&host.host()).unwrap());
    let (device, function) = named(&host, 5);
    let address = root.insert(function).unwrap();
    let TestHost { reconfigure, .. } = host;
    let end = reconfigure.keep_busy();
    let (sender, done) = channel();
    let told = move |result: Result<(), RootError>| sender.send(result).unwrap();
    root.remove_later(address, &reconfigure.poster(), told).unwrap();
    drop(end);
    drop(reconfigure);
    // Made, or dropped with the thread.
    assert!(matches!(done.try_recv(), Ok(Ok(())) | Err(TryRecvError::Disconnected)));
    drop(root);
    assert_eq!(Arc::strong_count(&device), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any read by either way is made of the bytes that single reads give; writes by one way are seen by the other.
    #[test]
    fn both_ways_lead_to_the_same_bytes(
        accesses in prop::collection::vec((0u64..3, 0u64..256, 1usize..=4, any::<[u8; 4]>(), any::<bool>()), 1..30)
    ) {
        let machine = machine();
        machine.add(1);
        for (device, register, length, data, by_port) in accesses {
            // Not beyond the function or, by ports, the register.
            let length = length.min(if by_port { 4 - register % 4 } else { 256 - register } as usize);
            // Memory space stays off: moving is the other test's.
            let data = if (0x02..0x08).contains(&register) { [0; 4] } else { data };
            let selected = 0x8000_0000 | (device as u32) << 11 | (register & !3) as u32;
            machine.select(selected);
            let (port, memory) = (0xcfc + register % 4, device * 0x8000 + register);
            let deferred = if by_port {
                machine.ports.write(port, length, &data[..length])
            } else {
                machine.memory.write(ECAM + memory, length, &data[..length])
            };
            finish(deferred);
            let bytes: Vec<_> = (0..length as u64).flat_map(|at| machine.memory(memory + at, 1)).collect();
            prop_assert_eq!(&machine.memory(memory, length), &bytes);
            if register % 4 + length as u64 <= 4 {
                prop_assert_eq!(&machine.port(port, length), &bytes);
            }
        }
    }
}
