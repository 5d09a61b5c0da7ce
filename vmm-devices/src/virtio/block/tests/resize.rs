//! Disks that become larger and smaller while they are in use.

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

fn length(file: &tempfile::NamedTempFile) -> u64 {
    file.as_file().metadata().unwrap().len()
}

#[test]
fn a_disk_whose_file_has_another_length_tells_its_driver_and_takes_what_has_become_valid() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    assert_eq!(bench.write(SECTORS, &[5; 512]), IOERR);
    let before = bench.started.status.generation();
    file.as_file().set_len(2 * SECTORS * SECTOR + 100).unwrap();
    assert_eq!(bench.block.rescan().unwrap(), 2 * SECTORS * SECTOR);
    bench.started.interrupts.wait_for_config();
    assert_eq!(u64::from_le_bytes(bench.config(0)), 2 * SECTORS);
    assert_ne!(bench.started.status.generation(), before);
    assert_eq!(bench.write(SECTORS, &[5; 512]), OK);
    // Nothing has changed, and nothing is said.
    let (before, interrupts) = (bench.started.status.generation(), bench.started.interrupts.total());
    assert_eq!(bench.block.rescan().unwrap(), 2 * SECTORS * SECTOR);
    assert_eq!((bench.started.status.generation(), bench.started.interrupts.total()), (before, interrupts));
}

#[test]
fn a_file_grows_by_as_much_as_is_asked_for() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    assert_eq!(bench.block.resize(3 * SECTORS * SECTOR, false, LIMIT).unwrap(), 3 * SECTORS * SECTOR);
    bench.started.interrupts.wait_for_config();
    assert_eq!((u64::from_le_bytes(bench.config(0)), length(&file)), (3 * SECTORS, 3 * SECTORS * SECTOR));
    assert_eq!(bench.read(3 * SECTORS - 1, 512), (OK, vec![0; 512]));
    // As large as it is already.
    bench.block.resize(3 * SECTORS * SECTOR, false, LIMIT).unwrap();
}

#[test]
fn a_file_shrinks_only_if_that_is_meant_and_then_requests_beyond_its_end_fail() {
    let file = image_file();
    let mut bench = Bench::file(&file);
    let half = SECTORS / 2;
    let refused = bench.block.resize(half * SECTOR, false, LIMIT).unwrap_err();
    assert!(matches!(refused, ResizeError::Shrinks { from, to, .. } if from == 2 * to), "{refused}");
    assert_eq!((bench.write(half, &[1; 512]), length(&file)), (OK, SECTORS * SECTOR));
    assert_eq!(bench.block.resize(half * SECTOR, true, LIMIT).unwrap(), half * SECTOR);
    bench.started.interrupts.wait_for_config();
    assert_eq!((bench.write(half, &[1; 512]), bench.write(half - 1, &[1; 512])), (IOERR, OK));
    assert_eq!((u64::from_le_bytes(bench.config(0)), length(&file)), (half, half * SECTOR));
}

#[test]
fn a_request_that_waits_for_the_limit_is_checked_against_the_size_of_then() {
    let file = image_file();
    let throttle = Throttle::new(empty_for_long());
    let mut bench = Bench::new(block(raw(&file), BlockOptions { throttle, ..options() }));
    assert_eq!(bench.read(0, 512).0, OK);
    let parts: [&[u8]; 2] = [&header(VIRTIO_BLK_T_OUT, SECTORS - 1), &[1; 512]];
    let request = bench.driver.submit(&parts, &[1]);
    bench.started.doorbells[0].ring();
    while bench.block.counts().throttled == 0 {
        std::thread::yield_now();
    }
    bench.block.resize(SECTOR, true, LIMIT).unwrap();
    bench.block.change_limits(|_| Limits::default());
    bench.wait();
    assert_eq!((bench.status(&request), length(&file)), (IOERR, SECTOR));
    // The line has gone on.
    assert_eq!((bench.read(0, 512).0, bench.block.counts().throttled), (OK, 1));
}

#[test]
fn a_request_that_is_refused_after_its_wait_keeps_no_other_queue_waiting() {
    let file = image_file();
    let throttle = Throttle::new(empty_for_long());
    let disk = block(raw(&file), BlockOptions { queues: 2, throttle, ..options() });
    let memory = ram();
    let [mut first, mut second] =
        [0, 1].map(|index| Driver::new(&memory, index, 16, index as u64 * 0x4_0000));
    let started = Started::new(&disk, &memory, &[&first, &second], disk.features()).unwrap();
    let waits = |count| {
        while disk.counts().throttled < count {
            std::thread::yield_now();
        }
    };
    first.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    first.submit(&[&header(VIRTIO_BLK_T_OUT, SECTORS - 1), &[1; 512]], &[1]);
    started.doorbells[0].ring();
    waits(1);
    second.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    started.doorbells[1].ring();
    waits(2);
    disk.resize(SECTOR, true, LIMIT).unwrap();
    disk.change_limits(|_| Limits::default());
    let deadline = std::time::Instant::now() + LIMIT / 2;
    while second.used_index() == 0 {
        assert!(std::time::Instant::now() < deadline, "the second queue waits for ever");
        std::thread::yield_now();
    }
    assert_eq!((disk.counts().refused, disk.counts().reads, length(&file)), (1, 2, SECTOR));
}

#[test]
fn what_is_in_flight_is_waited_for_also_in_a_queue_that_stops_and_in_one_that_is_broken() {
    for ending in ["runs", "stops", "broken"] {
        let (backend, slow) = Slow::backend();
        let mut bench = Bench::new(block(backend, options()));
        let shared = Arc::clone(&bench.block.shared);
        let request = bench.driver.submit(&[&header(VIRTIO_BLK_T_IN, 0)], &[512, 1]);
        bench.started.doorbells[0].ring();
        slow.calls.recv().unwrap();
        assert!(!shared.settle(Duration::ZERO), "{ending}");
        let (sender, stopped) = channel();
        let mut started = Some(bench.started);
        match ending {
            "stops" => {
                let running = started.take().unwrap().running;
                running.stop(Box::new(move |states| sender.send(states).unwrap()));
            }
            "broken" => {
                bench.driver.make_available(request.head);
                let started = started.as_ref().unwrap();
                started.doorbells[0].ring();
                started.interrupts.wait_for_config();
            }
            _ => {}
        }
        assert!(!shared.settle(Duration::ZERO), "{ending}");
        slow.go.send(Ok(())).unwrap();
        assert!(shared.settle(LIMIT), "{ending}");
        drop(stopped);
    }
}

#[test]
fn a_size_that_changes_before_the_driver_is_ready_is_told_when_it_is() {
    let file = image_file();
    let block = block(raw(&file), options());
    block.resize(SECTORS * SECTOR * 2, false, LIMIT).unwrap();
    let bench = Bench::new(block);
    bench.started.interrupts.wait_for_config();
    assert_eq!(u64::from_le_bytes(bench.config(0)), 2 * SECTORS);
}

#[test]
fn a_size_that_cannot_be_is_refused_and_nothing_changes() {
    let file = image_file();
    let disk = block(raw(&file), options());
    for size in [0, 1, 511, 513, SECTORS * SECTOR + 1] {
        let error = disk.resize(size, true, LIMIT).unwrap_err();
        assert!(matches!(error, ResizeError::NotSectors { length, .. } if length == size), "{error}");
    }
    let error = disk.resize(1 << 63, true, LIMIT).unwrap_err();
    assert!(matches!(error, ResizeError::Host { .. }), "{error}");
    assert_eq!((length(&file), disk.rescan().unwrap()), (SECTORS * SECTOR, SECTORS * SECTOR));
    drop(disk);
    let image = Image::open(file.path(), ImageOptions { read_only: true, direct: false }).unwrap();
    let read_only = block(Backend::Raw(Arc::new(image)), BlockOptions { read_only: true, ..options() });
    let other = block(Slow::backend().0, options());
    for (disk, reason) in [(read_only, "it is only read"), (other, "its format is not raw")] {
        let error = disk.resize(SECTOR, true, LIMIT).unwrap_err().to_string();
        assert!(error.ends_with(reason), "{error}");
    }
}
