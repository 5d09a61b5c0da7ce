//! `Cmos`: the MC146818 real-time clock with its 128 bytes of CMOS memory, ports 0x70 (index) and 0x71 (data).
//!
//! The clock is the host's, in UTC, BCD and 24-hour form (register B is fixed); it cannot be set and raises no
//! interrupts. The other bytes are memory. vm-superio has no such device.

use time::UtcDateTime;

use crate::BusDeviceMut;

const CENTURY: u8 = 0x32;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;

/// Divider for a 32,768 Hz crystal, 1,024 Hz periodic rate.
const A_VALUE: u8 = 0x26;
/// Bit 7 of register A: the time is about to change. Up for the last 244 µs of a second.
const UPDATE_IN_PROGRESS: u8 = 0x80;
const UPDATE_SOON: u32 = 1_000_000_000 - 244_000;
/// 24-hour mode, BCD.
const B_VALUE: u8 = 0x02;
/// The battery is good.
const D_VALUE: u8 = 0x80;

/// The real-time clock. Put it on a bus inside a `Mutex`.
#[derive(Debug)]
pub struct Cmos {
    index: u8,
    memory: [u8; 128],
}

impl Default for Cmos {
    fn default() -> Self {
        Self { index: 0, memory: [0; 128] }
    }
}

impl Cmos {
    fn register(&self, now: UtcDateTime) -> u8 {
        let year = u8::try_from(now.year().rem_euclid(100)).unwrap_or(0);
        match self.index {
            0x00 => bcd(now.second()),
            0x02 => bcd(now.minute()),
            0x04 => bcd(now.hour()),
            0x06 => bcd(now.weekday().number_from_sunday()),
            0x07 => bcd(now.day()),
            0x08 => bcd(now.month().into()),
            0x09 => bcd(year),
            CENTURY => bcd(u8::try_from(now.year().div_euclid(100)).unwrap_or(0)),
            REGISTER_A if now.nanosecond() >= UPDATE_SOON => A_VALUE | UPDATE_IN_PROGRESS,
            REGISTER_A => A_VALUE,
            REGISTER_B => B_VALUE,
            REGISTER_C => 0,
            REGISTER_D => D_VALUE,
            index => self.memory.get(usize::from(index)).copied().unwrap_or(0),
        }
    }
}

/// Two decimal digits, as the clock shows them. `value` is below 100.
fn bcd(value: u8) -> u8 {
    value.wrapping_div(10).wrapping_shl(4) | value.wrapping_rem(10)
}

impl BusDeviceMut for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], 1) = (data, offset) {
            *byte = self.register(UtcDateTime::now());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (data, offset) {
            // Bit 7 of the index port is the NMI mask.
            (&[byte], 0) => self.index = byte & 0x7f,
            (&[byte], 1) => {
                if let Some(to) = self.memory.get_mut(usize::from(self.index)) {
                    *to = byte;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use time::{Date, Month, Time};

    use super::*;

    fn at(index: u8) -> u8 {
        let date = Date::from_calendar_date(2026, Month::November, 21).unwrap();
        let now = UtcDateTime::new(date, Time::from_hms(23, 59, 8).unwrap());
        Cmos { index, ..Default::default() }.register(now)
    }

    #[test]
    fn the_time_is_bcd_in_24_hour_form() {
        assert_eq!([at(4), at(2), at(0)], [0x23, 0x59, 0x08]);
        assert_eq!([at(CENTURY), at(9), at(8), at(7), at(6)], [0x20, 0x26, 0x11, 0x21, 7]);
        assert_eq!((at(REGISTER_B), at(REGISTER_D)), (0x02, 0x80));
    }

    #[test]
    fn an_update_is_announced_before_the_second_ends() {
        let register_a = |nanosecond| {
            let date = Date::from_calendar_date(2026, Month::November, 21).unwrap();
            let now = UtcDateTime::new(date, Time::from_hms_nano(0, 0, 0, nanosecond).unwrap());
            Cmos { index: REGISTER_A, ..Default::default() }.register(now)
        };
        assert_eq!((register_a(999_755_999), register_a(999_756_000)), (0x26, 0xa6));
    }

    #[test]
    fn memory_keeps_what_is_written_and_the_clock_does_not() {
        let mut cmos = Cmos::default();
        for (index, kept) in [(0x0fu8, true), (0x7f, true), (REGISTER_D, false)] {
            cmos.write(0, &[index | 0x80]);
            cmos.write(1, &[0xa5]);
            let mut byte = [0];
            cmos.read(1, &mut byte);
            assert_eq!(byte[0] == 0xa5, kept, "{index:#x}");
        }
    }

    #[test]
    fn fault_b1_wide_accesses_do_nothing() {
        let mut cmos = Cmos::default();
        cmos.write(0, &[0x0f, 0]);
        let mut word = [0xff; 2];
        cmos.read(1, &mut word);
        assert_eq!((cmos.index, word), (0, [0, 0]));
    }
}
