//! `Serial`: a 16550A UART over vm-superio's, with an output that never blocks and an input that is never lost.
//!
//! What vm-superio lacks is added here, by the PC16550D data sheet: interrupts are identified by priority and reading
//! the identification clears that of the transmitter only (table 4); the receiver FIFO can be cleared (section 8.5).

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_core::irq::IrqTrigger;

use crate::BusDevice;

/// Number of ports.
const PORTS: u64 = 8;

/// Registers, by offset.
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_ID: u8 = 2;
const FIFO_CONTROL: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_TRANSMITTED: u8 = 1 << 1;
const ID_NONE: u8 = 0x01;
const ID_TRANSMITTED: u8 = 0x02;
const ID_RECEIVED: u8 = 0x04;
const ID_FIFOS: u8 = 0xc0;
const CLEAR_RECEIVER: u8 = 1 << 1;
const DIVISOR_LATCH: u8 = 1 << 7;
const DATA_READY: u8 = 1 << 0;

/// The UART's interrupt.
struct Interrupt(IrqTrigger);

impl Trigger for Interrupt {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.trigger();
        Ok(())
    }
}

/// Called when the guest can take more input.
type OnDrained = Box<dyn Fn() + Send + Sync>;

/// Tells the source of the input that the FIFO is empty, if it wants to know.
struct Drained {
    tell: OnDrained,
    /// Whether input was offered since it was last told: a guest that polls an empty FIFO wakes nobody.
    wanted: AtomicBool,
}

impl Drained {
    fn tell(&self) {
        // Relaxed: all under the UART's lock.
        if self.wanted.swap(false, Ordering::Relaxed) {
            (self.tell)();
        }
    }
}

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.tell();
    }
}

type Inner = vm_superio::Serial<Interrupt, Arc<Drained>, Box<dyn Write + Send>>;

struct Uart {
    inner: Inner,
    drained: Arc<Drained>,
    interrupts_enabled: u8,
    /// The transmitter is empty and the guest has not been told by an identification yet.
    transmitted: bool,
}

impl Uart {
    fn latch_is_open(&mut self) -> bool {
        self.inner.read(LINE_CONTROL) & DIVISOR_LATCH != 0
    }

    fn has_data(&mut self) -> bool {
        self.inner.read(LINE_STATUS) & DATA_READY != 0
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            INTERRUPT_ID => self.identify(),
            _ => self.inner.read(register),
        }
    }

    fn clear_receiver(&mut self) {
        // The data register is behind the divisor latch while that is open.
        let line_control = self.inner.read(LINE_CONTROL);
        let _ = self.inner.write(LINE_CONTROL, line_control & !DIVISOR_LATCH);
        while self.has_data() {
            self.inner.read(DATA);
        }
        let _ = self.inner.write(LINE_CONTROL, line_control);
    }

    /// The pending interrupt of the highest priority.
    fn identify(&mut self) -> u8 {
        // vm-superio forgets both with this read.
        self.transmitted |= self.inner.read(INTERRUPT_ID) & ID_TRANSMITTED != 0;
        if self.interrupts_enabled & ENABLE_RECEIVED != 0 && self.has_data() {
            ID_FIFOS | ID_RECEIVED
        } else if self.interrupts_enabled & ENABLE_TRANSMITTED != 0 && std::mem::take(&mut self.transmitted) {
            ID_FIFOS | ID_TRANSMITTED
        } else {
            ID_FIFOS | ID_NONE
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        match register {
            INTERRUPT_ENABLE if !self.latch_is_open() => self.interrupts_enabled = value,
            FIFO_CONTROL if value & CLEAR_RECEIVER != 0 => self.clear_receiver(),
            _ => {}
        }
        // Output that has nowhere to go is counted by the sink.
        let _ = self.inner.write(register, value);
        if register == MODEM_CONTROL {
            // No input is taken in loopback mode; it may just have ended.
            self.drained.tell();
        }
    }
}

/// A serial port: 8 ports, one interrupt line.
pub struct Serial(Mutex<Uart>);

impl Serial {
    /// Number of ports it takes.
    pub const PORTS: u64 = PORTS;

    /// A serial port whose output goes to `output`, which must not block. `on_drained` is called on a vCPU's thread when
    /// input was offered and the FIFO has become empty since; it must be quick.
    #[must_use]
    pub fn new(interrupt: IrqTrigger, output: Box<dyn Write + Send>, on_drained: OnDrained) -> Self {
        let drained = Arc::new(Drained { tell: on_drained, wanted: AtomicBool::new(false) });
        let inner = vm_superio::Serial::with_events(Interrupt(interrupt), Arc::clone(&drained), output);
        Self(Mutex::new(Uart { inner, drained, interrupts_enabled: 0, transmitted: false }))
    }

    /// Offers input; returns how many bytes fit into the FIFO of 64 and were taken.
    pub fn input(&self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let mut uart = self.lock();
        uart.drained.wanted.store(true, Ordering::Relaxed);
        let free = uart.inner.fifo_capacity();
        let fitting = bytes.get(..free.min(bytes.len())).unwrap_or(bytes);
        if fitting.is_empty() {
            return 0;
        }
        uart.inner.enqueue_raw_bytes(fitting).unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(register)) = (data, u8::try_from(offset)) {
            *byte = self.lock().read(register);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(register)) = (data, u8::try_from(offset)) {
            self.lock().write(register, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Fixture {
        serial: Serial,
        trigger: IrqTrigger,
        sink: Sink,
        drained: Arc<AtomicUsize>,
    }

    fn fixture() -> Fixture {
        let (trigger, sink) = (IrqTrigger::unconnected().unwrap(), Sink::default());
        let drained = Arc::new(AtomicUsize::new(0));
        let on_drained = {
            let drained = drained.clone();
            Box::new(move || {
                drained.fetch_add(1, Ordering::Relaxed);
            })
        };
        Fixture {
            serial: Serial::new(trigger.clone(), Box::new(sink.clone()), on_drained),
            trigger,
            sink,
            drained,
        }
    }

    fn read(serial: &Serial, register: u8) -> u8 {
        let mut byte = [0];
        serial.read(register.into(), &mut byte);
        byte[0]
    }

    #[test]
    fn what_the_guest_writes_comes_out_and_the_line_is_always_ready() {
        let f = fixture();
        for byte in b"hello" {
            f.serial.write(DATA.into(), &[*byte]);
            assert_eq!(read(&f.serial, LINE_STATUS) & 0x60, 0x60);
        }
        assert_eq!(*f.sink.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn fault_b13_input_is_bounded_and_nothing_of_it_is_lost() {
        let f = fixture();
        let input: Vec<u8> = (0..=255).collect();
        let (mut sent, mut received) = (0, Vec::new());
        while received.len() < input.len() {
            let taken = f.serial.input(&input[sent..]);
            assert!(taken <= 64);
            sent += taken;
            assert_eq!(f.serial.input(&input[sent..]), 0);
            while read(&f.serial, LINE_STATUS) & 1 != 0 {
                received.push(read(&f.serial, DATA));
            }
        }
        assert_eq!(received, input);
        assert_eq!(f.drained.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn input_interrupts_when_the_guest_asked_for_it() {
        let f = fixture();
        f.serial.input(b"a");
        assert_eq!(f.trigger.signals(), 0);
        f.serial.write(INTERRUPT_ENABLE.into(), &[1]);
        assert_eq!(f.trigger.signals(), 1);
    }

    #[test]
    fn received_data_goes_before_an_empty_transmitter_and_neither_is_forgotten() {
        let f = fixture();
        f.serial.write(INTERRUPT_ENABLE.into(), &[ENABLE_RECEIVED | ENABLE_TRANSMITTED]);
        f.serial.input(b"ab");
        assert_eq!(read(&f.serial, INTERRUPT_ID), ID_FIFOS | ID_RECEIVED);
        assert_eq!(read(&f.serial, DATA), b'a');
        assert_eq!(read(&f.serial, INTERRUPT_ID), ID_FIFOS | ID_RECEIVED);
        assert_eq!(read(&f.serial, DATA), b'b');
        assert_eq!(read(&f.serial, INTERRUPT_ID), ID_FIFOS | ID_TRANSMITTED);
        assert_eq!(read(&f.serial, INTERRUPT_ID), ID_FIFOS | ID_NONE);
    }

    #[test]
    fn clearing_the_receiver_empties_the_fifo_and_asks_for_more() {
        let f = fixture();
        f.serial.input(b"stale");
        f.serial.write(LINE_CONTROL.into(), &[DIVISOR_LATCH]);
        f.serial.write(FIFO_CONTROL.into(), &[0x01 | CLEAR_RECEIVER]);
        assert_eq!(read(&f.serial, LINE_CONTROL), DIVISOR_LATCH);
        assert_eq!(read(&f.serial, LINE_STATUS) & DATA_READY, 0);
        assert_eq!(f.drained.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn input_that_came_during_loopback_is_asked_for_when_it_ends() {
        let f = fixture();
        f.serial.write(MODEM_CONTROL.into(), &[0x10]);
        assert_eq!(f.serial.input(b"x"), 0);
        f.serial.write(MODEM_CONTROL.into(), &[0x08]);
        assert_eq!((f.drained.load(Ordering::Relaxed), f.serial.input(b"x")), (1, 1));
    }

    #[test]
    fn a_guest_that_polls_an_empty_fifo_wakes_nobody() {
        let f = fixture();
        for _ in 0..10 {
            read(&f.serial, DATA);
        }
        assert_eq!(f.drained.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn fault_b1_wide_accesses_read_as_zero_and_print_nothing() {
        let f = fixture();
        f.serial.write(DATA.into(), b"ab");
        let mut word = [0xff; 2];
        f.serial.read(LINE_STATUS.into(), &mut word);
        assert_eq!((word, f.sink.0.lock().unwrap().len()), ([0, 0], 0));
    }
}
