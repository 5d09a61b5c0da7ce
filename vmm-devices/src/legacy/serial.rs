//! `Serial`: a 16550A UART over vm-superio's, with an output that never blocks and an input that is never lost.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_core::irq::IrqTrigger;

use crate::BusDevice;

/// Number of ports.
const PORTS: u64 = 8;

/// The UART's interrupt.
struct Interrupt(IrqTrigger);

impl Trigger for Interrupt {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.trigger();
        Ok(())
    }
}

/// Called when the guest has taken the last byte of input.
type OnDrained = Box<dyn Fn() + Send + Sync>;

/// What happens in the UART that others wait for.
struct Events(OnDrained);

impl SerialEvents for Events {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        (self.0)();
    }
}

type Uart = vm_superio::Serial<Interrupt, Arc<Events>, Box<dyn Write + Send>>;

/// A serial port: 8 ports, one interrupt line.
pub struct Serial(Mutex<Uart>);

impl Serial {
    /// Number of ports it takes.
    pub const PORTS: u64 = PORTS;

    /// A serial port whose output goes to `output`, which must not block. `on_drained` is called on a vCPU's thread
    /// when the input FIFO has become empty; it must be quick.
    #[must_use]
    pub fn new(interrupt: IrqTrigger, output: Box<dyn Write + Send>, on_drained: OnDrained) -> Self {
        let events = Arc::new(Events(on_drained));
        Self(Mutex::new(vm_superio::Serial::with_events(Interrupt(interrupt), events, output)))
    }

    /// Offers input; returns how many bytes fit into the FIFO of 64 and were taken.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut uart = self.lock();
        let free = uart.fifo_capacity();
        let fitting = bytes.get(..free.min(bytes.len())).unwrap_or(bytes);
        if fitting.is_empty() {
            return 0;
        }
        uart.enqueue_raw_bytes(fitting).unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = self.lock().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (&[byte], Ok(offset)) = (data, u8::try_from(offset)) {
            // Output that has nowhere to go is counted by the sink.
            let _ = self.lock().write(offset, byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

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

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn what_the_guest_writes_comes_out_and_the_line_is_always_ready() {
        let f = fixture();
        for byte in b"hello" {
            f.serial.write(DATA, &[*byte]);
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
        f.serial.write(INTERRUPT_ENABLE, &[1]);
        assert_eq!(f.trigger.signals(), 1);
    }

    #[test]
    fn fault_b1_wide_accesses_read_as_zero_and_print_nothing() {
        let f = fixture();
        f.serial.write(DATA, b"ab");
        let mut word = [0xff; 2];
        f.serial.read(LINE_STATUS, &mut word);
        assert_eq!((word, f.sink.0.lock().unwrap().len()), ([0, 0], 0));
    }
}
