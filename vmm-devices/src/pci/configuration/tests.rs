//! Configuration space against a model that says of each byte what the specification does.

use proptest::prelude::*;

use super::*;
use crate::pci::BarWidth;

const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    subsystem_vendor: 0x1af4,
    subsystem: 0x40,
    class: 0x01_8000,
    revision: 1,
};

/// BAR 0 of 32 bits, BAR 2 of 64, two capabilities.
fn configuration() -> Configuration {
    let mut configuration = Configuration::new(IDENTITY);
    configuration.add_bar(0, Bar::registers(0x4000, BarWidth::Bits32).unwrap()).unwrap();
    configuration.add_bar(2, Bar::memory(1 << 33, BarWidth::Bits64).unwrap()).unwrap();
    configuration.add_capability(9, &[7, 1, 2, 3, 4], &[0, 0, 0xf0]).unwrap();
    configuration.add_capability(0x11, &[0; 10], &[0, 0xc0]).unwrap();
    configuration
}

fn load(configuration: &Configuration, offset: usize) -> u32 {
    u32::from_le_bytes(configuration.get(offset).unwrap())
}

#[test]
fn the_header_says_who_it_is() {
    let configuration = configuration();
    assert_eq!(load(&configuration, 0), 0x1042_1af4);
    assert_eq!(load(&configuration, 8), 0x01_8000 << 8 | 1);
    assert_eq!(load(&configuration, 0x2c), 0x40_1af4);
    assert_eq!(load(&configuration, 0x0c) >> 16, 0, "header of type 0, one function, no self-test");
    assert_eq!(load(&configuration, 0x3c), 0, "no interrupt pin");
}

#[test]
fn capabilities_are_a_list_at_multiples_of_four() {
    let configuration = configuration();
    assert_eq!(load(&configuration, 4) >> 16, 0x10);
    assert_eq!(load(&configuration, 0x34), 0x40);
    assert_eq!(load(&configuration, 0x40), 0x0107_4809);
    assert_eq!(load(&configuration, 0x48), 0x11);
    assert_eq!((configuration.capability(0x11), configuration.capability(5)), (Some(0x48), None));
}

#[test]
fn a_capability_that_does_not_fit_is_refused() {
    let mut configuration = Configuration::new(IDENTITY);
    for _ in 0..12 {
        configuration.add_capability(9, &[0; 14], &[]).unwrap();
    }
    let full = CapabilityError { id: 9, length: 3, left: 0 };
    assert_eq!(configuration.add_capability(9, &[0], &[]), Err(full));
}

#[test]
fn a_bar_takes_its_registers_from_nobody() {
    let mut configuration = configuration();
    let (short, long) =
        (Bar::registers(16, BarWidth::Bits32).unwrap(), Bar::registers(16, BarWidth::Bits64).unwrap());
    for (index, bar) in
        [(0, short), (1, long), (2, short), (3, short), (5, long), (6, short), (usize::MAX, long)]
    {
        assert_eq!(configuration.add_bar(index, bar), Err(BarError::Taken(index)), "{index}");
    }
    configuration.add_bar(1, short).unwrap();
    configuration.add_bar(4, long).unwrap();
}

#[test]
fn all_ones_read_back_as_the_size() {
    let mut configuration = configuration();
    for (register, expected) in [(0x10, 0xffff_c000), (0x14, 0), (0x18, 0xc), (0x1c, 0xffff_fffe), (0x30, 0)]
    {
        configuration.write(register, &[0xff; 4]);
        assert_eq!(load(&configuration, register), expected, "{register:#x}");
    }
}

#[test]
fn bars_are_decoded_while_memory_space_is_on() {
    let mut configuration = configuration();
    configuration.set_bar_address(0, 0xc000_4000);
    configuration.set_bar_address(2, 0x2_0000_0000);
    assert_eq!(configuration.decoded(), [None; BARS]);
    configuration.write(4, &[2]);
    assert_eq!(configuration.decoded()[..3], [Some(0xc000_4000), None, Some(0x2_0000_0000)]);
}

/// What software has written, in the terms of the specification.
#[derive(Default)]
struct Model {
    command: u16,
    cache_line: u8,
    interrupt_line: u8,
    bar0: u32,
    bar2: u64,
    capability: u8,
    msix_control: u16,
}

impl Model {
    fn write(&mut self, offset: usize, byte: u8) {
        fn replace(value: u64, at: usize, byte: u8) -> u64 {
            value & !(0xff << (8 * at)) | u64::from(byte) << (8 * at)
        }
        match offset {
            // Memory space and bus master; interrupt disable.
            4 => self.command = self.command & 0xff00 | u16::from(byte & 6),
            5 => self.command = self.command & 0xff | u16::from(byte & 4) << 8,
            0x0c => self.cache_line = byte,
            0x3c => self.interrupt_line = byte,
            0x10..0x14 => self.bar0 = replace(self.bar0.into(), offset - 0x10, byte) as u32 / 0x4000 * 0x4000,
            0x18..0x20 => self.bar2 = replace(self.bar2, offset - 0x18, byte) >> 33 << 33,
            0x44 => self.capability = byte >> 4,
            0x4b => self.msix_control = u16::from(byte >> 6) << 14,
            _ => {}
        }
    }

    fn read(&self, offset: usize) -> u8 {
        let at = |value: u64, start: usize| (value >> (8 * (offset - start))) as u8;
        match offset {
            0..4 => at(0x1042_1af4, 0),
            4..6 => at(self.command.into(), 4),
            6 => 0x10,
            8..12 => at(0x0180_0001, 8),
            0x0c => self.cache_line,
            0x10..0x14 => at(self.bar0.into(), 0x10),
            0x18..0x20 => at(self.bar2 | 0xc, 0x18),
            0x2c..0x30 => at(0x40_1af4, 0x2c),
            0x34 => 0x40,
            0x3c => self.interrupt_line,
            0x40..0x44 => at(0x0107_4809, 0x40),
            0x44 => 2 | self.capability << 4,
            0x45 => 3,
            0x46 => 4,
            0x48 => 0x11,
            0x4a..0x4c => at(self.msix_control.into(), 0x4a),
            _ => 0,
        }
    }
}

proptest! {
    #[test]
    fn registers_are_what_the_specification_says_whatever_is_written(
        writes in prop::collection::vec((0usize..270, prop::collection::vec(any::<u8>(), 0..9)), 0..60)
    ) {
        let (mut configuration, mut model) = (configuration(), Model::default());
        model.capability = 0;
        for (offset, data) in writes {
            configuration.write(offset, &data);
            for (offset, byte) in (offset..).zip(&data) {
                model.write(offset, *byte);
            }
            let mut seen = [0xaa; 260];
            configuration.read(0, &mut seen);
            let expected: Vec<_> = (0..256).map(|offset| model.read(offset)).chain([0xaa; 4]).collect();
            prop_assert_eq!(seen.as_slice(), expected);
            let is_on = model.command & 2 != 0;
            let decoded = [Some(model.bar0.into()), None, Some(model.bar2), None, None, None];
            prop_assert_eq!(configuration.decoded(), decoded.map(|bar: Option<u64>| bar.filter(|_| is_on)));
        }
    }
}
