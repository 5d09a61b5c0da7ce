//! The jail: what a machine in it has of its host, how it ends, and what is refused.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tempfile::TempDir;
use vmm_cli::config::CpuList;
use vmm_tests::harness::{
    ControlSocket, NOBODY, PATIENCE, Process, RunningVm, Terminal, TestVm, guest, monitor, until,
};

/// The trials of this suite.
pub fn trials() -> Vec<Trial> {
    let anybodys = crate::trials![
        the_embedded_guest_runs_in_a_jail,
        the_embedded_guest_runs_in_a_user_namespace,
        only_what_was_named_is_in_the_jail,
        a_directory_with_more_than_was_named_is_told_of,
        a_disk_that_is_not_in_the_jail_can_be_added,
        a_dedicated_cpu_is_found_in_a_jail,
        nothing_is_left_of_a_jail,
        a_jail_ends_with_the_code_of_its_machine,
        a_signal_reaches_the_machine,
        a_machine_dies_with_those_who_watch_over_it,
        a_file_that_is_not_its_owners_alone_is_refused,
        what_a_jail_cannot_have_is_refused,
        descriptors_that_nobody_has_named_are_closed,
        keys_reach_the_guest_and_the_terminal_is_given_back,
        a_jail_in_the_background_leaves_the_terminal_alone,
    ];
    let roots = crate::trials![
        the_embedded_guest_runs_as_a_user_without_privileges,
        root_gives_up_its_user,
        a_user_who_may_not_use_kvm_is_refused_with_what_permits,
        a_control_group_goes_with_its_jail,
    ];
    // Whoever is not root is the user without privileges, in all of the others.
    let roots = roots
        .into_iter()
        .map(|trial| if geteuid().is_root() { trial } else { crate::not_run(&trial, "needs root", false) });
    anybodys.into_iter().chain(roots).collect()
}

/// A directory of one trial, by its own name.
struct Scratch {
    _directory: TempDir,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().canonicalize()?;
        Ok(Self { _directory: directory, path })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A copy of the guest program `name`, which is nobody else's.
    fn guest(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::copy(guest(name), &path)?;
        Ok(path)
    }
}

/// A guest program that halts for good, in a jail, when it has said so.
fn halted(scratch: &Scratch, options: &str, args: &str) -> Result<RunningVm> {
    let vm = TestVm::bare().arg("--kernel").arg(scratch.guest("bench_halt")?).args(args).in_jail(options);
    let mut vm = vm.spawn()?;
    vm.wait_for_output("\x1e")?;
    Ok(vm)
}

/// The first process in the jail of `vm`, and the machine.
fn inside(vm: &RunningVm) -> Result<[Process; 2]> {
    let child = |process: Process| process.children()?.first().copied().context("no process inside");
    let first = child(vm.process())?;
    Ok([first, child(first)?])
}

fn stopped(vm: RunningVm) -> Result<()> {
    vm.signal(Signal::SIGTERM)?;
    vm.wait()?.ensure_code(0)?;
    Ok(())
}

fn the_embedded_guest_runs_in_a_jail() -> Result<()> {
    let vm = TestVm::bare().args("--cpus 2").in_jail("").run()?.ensure_code(0)?;
    ensure!(vm.text().contains("checks passed") && vm.stderr.is_empty(), "{:?}, {:?}", vm.text(), vm.stderr);
    Ok(())
}

fn the_embedded_guest_runs_in_a_user_namespace() -> Result<()> {
    let vm = TestVm::bare().in_jail("--user-namespace").run()?.ensure_code(0)?;
    ensure!(vm.text().contains("checks passed") && vm.stderr.is_empty(), "{:?}, {:?}", vm.text(), vm.stderr);
    Ok(())
}

fn the_embedded_guest_runs_as_a_user_without_privileges() -> Result<()> {
    let scratch = Scratch::new()?;
    let vm = TestVm::bare().args("--cpus 2").in_jail("").as_nobody(&scratch.path)?.run()?.ensure_code(0)?;
    ensure!(vm.text().contains("checks passed") && vm.stderr.is_empty(), "{:?}, {:?}", vm.text(), vm.stderr);
    Ok(())
}

fn root_gives_up_its_user() -> Result<()> {
    let scratch = Scratch::new()?;
    let vm = TestVm::bare().args("--stats -").in_jail(&format!("--uid {NOBODY} --gid 12345"));
    let vm = vm.with_kvm_for_all(&scratch.path)?.run()?.ensure_code(0)?;
    ensure!(vm.text().contains("checks passed") && vm.stderr.is_empty(), "{:?}, {:?}", vm.text(), vm.stderr);
    Ok(())
}

fn a_user_who_may_not_use_kvm_is_refused_with_what_permits() -> Result<()> {
    if fs::metadata("/dev/kvm")?.permissions().mode() & 0o006 == 0o006 {
        // Everybody may: then this one too.
        TestVm::bare().in_jail(&format!("--uid {NOBODY}")).run()?.ensure_code(0)?;
        return Ok(());
    }
    let vm = TestVm::bare().in_jail(&format!("--uid {NOBODY} --gid 12345")).run()?.ensure_code(3)?;
    vm.ensure_message(&[
        "KVM: user 65534 of group 12345 may not read and write /dev/kvm",
        "setfacl -m u:65534:rw /dev/kvm",
    ])?;
    Ok(())
}

/// All that is below `root` and no directory, by its path from there.
fn files_below(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                found.insert(Path::new("/").join(entry.path().strip_prefix(root)?));
            }
        }
    }
    Ok(found)
}

/// What a mount of the machine's process is.
struct Mounted {
    path: PathBuf,
    options: Vec<String>,
}

/// What the kernel says of the mounts of `process` (proc_pid_mountinfo(5)): field 5 is the path, 6 the options.
fn mounts(process: Process) -> Result<Vec<Mounted>> {
    let text = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid()))?;
    let mount = |line: &str| {
        let mut fields = line.split(' ').skip(4);
        let (path, options) = (fields.next()?, fields.next()?);
        Some(Mounted { path: path.into(), options: options.split(',').map(str::to_owned).collect() })
    };
    text.lines().map(|line| mount(line).with_context(|| line.to_owned())).collect()
}

fn only_what_was_named_is_in_the_jail() -> Result<()> {
    let (scratch, sockets) = (Scratch::new()?, Scratch::new()?);
    let (disk, log) = (scratch.path("disk"), scratch.path("log"));
    File::create(&disk)?.set_len(1 << 20)?;
    fs::write(scratch.path("secret"), "of somebody else")?;
    let args = format!(
        "--disk path={},format=raw --log-file {} --log-level info --api-sock {}",
        disk.display(),
        log.display(),
        sockets.path("control").display()
    );
    for options in ["", "--user-namespace"] {
        let vm = halted(&scratch, options, &args)?;
        let [first, machine] = inside(&vm)?;
        let kernel = scratch.path("bench_halt");
        let expected: BTreeSet<PathBuf> =
            ["/dev/kvm".into(), kernel.clone(), disk.clone(), log.clone(), sockets.path("control")].into();
        for process in [first, machine] {
            let found = files_below(&PathBuf::from(format!("/proc/{}/root", process.pid())))?;
            ensure!(found == expected, "{options}: {found:?} instead of {expected:?}");
            has_no_privileges(process).with_context(|| options.to_owned())?;
        }
        ensure!(machine.status("NSpid")?.ends_with("\t2"), "{}", machine.status("NSpid")?);
        let mut at = BTreeSet::new();
        for Mounted { path, options } in mounts(machine)? {
            let has = |option: &str| options.iter().any(|has| has == option);
            ensure!(has("nosuid") && has("noexec"), "{}: {options:?}", path.display());
            ensure!(has("nodev") != (path == Path::new("/dev/kvm")), "{}: {options:?}", path.display());
            let is_only_read = path == kernel || path == Path::new("/");
            ensure!(has("ro") == is_only_read, "{}: {options:?}", path.display());
            at.insert(path);
        }
        let places = ["/".into(), "/dev/kvm".into(), kernel, disk.clone(), log.clone(), sockets.path.clone()];
        ensure!(at == BTreeSet::from(places), "{at:?}");
        for space in ["mnt", "pid", "ipc", "uts", "net"] {
            let of = |pid: String| fs::read_link(format!("/proc/{pid}/ns/{space}"));
            ensure!(of(machine.pid().to_string())? != of("self".into())?, "{space} is shared with the host");
        }
        // By its path, from outside.
        TestVm::program(monitor())
            .arg("ctl")
            .arg(sockets.path("control"))
            .arg("quit")
            .run()?
            .ensure_code(0)?;
        vm.wait()?.ensure_code(0)?;
        ensure!(!sockets.path("control").exists(), "the socket is left");
        ensure!(
            fs::read_to_string(&log)?.contains("the machine has ended"),
            "{:?}",
            fs::read_to_string(&log)?
        );
    }
    Ok(())
}

fn has_no_privileges(process: Process) -> Result<()> {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let capabilities = process.status(set)?;
        ensure!(capabilities.bytes().all(|digit| digit == b'0'), "{set} is {capabilities}");
    }
    ensure!(process.status("NoNewPrivs")? == "1", "new privileges can be had");
    Ok(())
}

fn a_directory_with_more_than_was_named_is_told_of() -> Result<()> {
    let scratch = Scratch::new()?;
    fs::write(scratch.path("other"), "")?;
    let vm = halted(&scratch, "", &format!("--api-sock {}", scratch.path("control").display()))?;
    vm.wait_for_message("vmm-cli: jail: control.socket (--api-sock): all of ")?;
    stopped(vm)
}

fn a_disk_that_is_not_in_the_jail_can_be_added() -> Result<()> {
    let (scratch, more, place) = (Scratch::new()?, Scratch::new()?, ControlSocket::new()?);
    let disk = more.path("disk");
    File::create(&disk)?.set_len(1 << 20)?;
    let vm = TestVm::bare().arg("--kernel").arg(scratch.guest("bench_halt")?);
    let vm = place.start(vm.in_jail(""))?;
    place.reaches("running")?;
    let add = |path: &Path| place.ctl(&format!("device-add --disk path={},format=raw", path.display()));
    add(&more.path("other"))?.ensure_code(1)?.ensure_message(&["No such file"])?;
    add(&disk)?.ensure_code(0)?;
    place.ctl("disk-resize disk0 --size 2M")?.ensure_code(0)?;
    ensure!(fs::metadata(&disk)?.len() == 2 << 20, "another disk");
    place.ctl("device-remove disk0 --force")?.ensure_code(0)?;
    place.ctl("quit")?.ensure_code(0)?;
    let ended = vm.wait()?.ensure_code(0)?;
    ensure!(ended.stderr.is_empty(), "{:?}", ended.stderr);
    Ok(())
}

fn a_dedicated_cpu_is_found_in_a_jail() -> Result<()> {
    let scratch = Scratch::new()?;
    let status = Process::new(nix::unistd::Pid::this()).status("Cpus_allowed_list")?;
    let cpus: CpuList = status.parse()?;
    let last = cpus.iter().last().context("no CPU")?;
    let vm = TestVm::bare().arg("--kernel").arg(scratch.guest("bench_reset")?);
    let vm = vm.args(&format!("--dedicated --affinity {last} --log-level error")).in_jail("").run()?;
    if cpus.len() == 1 {
        vm.ensure_code(3)?.ensure_message(&["no host CPU is left"])?;
    } else {
        vm.ensure_code(0)?;
    }
    Ok(())
}

fn nothing_is_left_of_a_jail() -> Result<()> {
    let own = Process::new(nix::unistd::Pid::this());
    let before = mounts(own)?.len();
    let scratch = Scratch::new()?;
    let socket = scratch.path("vsock");
    let vm = halted(&scratch, "", &format!("--vsock path={}", socket.display()))?;
    ensure!(socket.exists(), "no socket");
    stopped(vm)?;
    ensure!(!socket.exists(), "the socket is left");
    ensure!(mounts(own)?.len() == before, "mounts are left");
    ensure!(scratch.path.read_dir()?.count() == 1, "files are left");
    Ok(())
}

fn a_jail_ends_with_the_code_of_its_machine() -> Result<()> {
    let scratch = Scratch::new()?;
    for (name, cmdline, code) in
        [("bench_reset", "", 0), ("triple_fault", "", 4), ("port_write", "f4 1 1", 65)]
    {
        let vm = TestVm::bare().arg("--kernel").arg(scratch.guest(name)?).cmdline(cmdline).in_jail("");
        vm.run()?.ensure_code(code).context(name)?;
    }
    // Started by somebody who does not want to hear of children.
    let vm = TestVm::bare().arg("--kernel").arg(scratch.guest("bench_reset")?).in_jail("");
    vm.through_shell("trap '' CHLD; exec \"$@\"").run()?.ensure_code(0)?;
    Ok(())
}

fn a_signal_reaches_the_machine() -> Result<()> {
    let scratch = Scratch::new()?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let vm = halted(&scratch, "", "")?;
        vm.signal(signal)?;
        vm.wait()?.ensure_code(0).context(signal)?;
    }
    // These end a machine, and mean nothing to the first process of a PID namespace. Nobody is started with one of them ignored, as
    // jobs in the background are with SIGQUIT.
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM] {
        let vm = halted(&scratch, "", "")?;
        vm.signal(signal)?;
        vm.wait()?.ensure_code(128 + signal as i32).context(signal)?;
    }
    // And this one nothing to anybody.
    let mut vm = halted(&scratch, "", "")?;
    vm.signal(Signal::SIGHUP)?;
    vm.goes_on_for(std::time::Duration::from_millis(100))?;
    stopped(vm)
}

fn a_machine_dies_with_those_who_watch_over_it() -> Result<()> {
    let scratch = Scratch::new()?;
    let gone = |process: Process| {
        until(Instant::now() + PATIENCE, "the end of the machine", || {
            // A process that nobody has taken leave of has no memory any more.
            Ok(process.status("VmRSS").is_err().then_some(()))
        })
    };
    for options in ["", "--user-namespace"] {
        let vm = halted(&scratch, options, "")?;
        let [first, machine] = inside(&vm)?;
        vm.signal(Signal::SIGKILL)?;
        vm.wait()?.ensure_signal(Signal::SIGKILL)?;
        gone(first)?;
        gone(machine)?;
        for at in 0..2 {
            let vm = halted(&scratch, options, "")?;
            let processes = inside(&vm)?;
            processes[at].signal(Signal::SIGKILL)?;
            vm.wait()?.ensure_code(137)?;
            processes.into_iter().try_for_each(gone)?;
        }
    }
    Ok(())
}

fn a_file_that_is_not_its_owners_alone_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let kernel = scratch.guest("bench_reset")?;
    let run = |path: &Path| TestVm::bare().arg("--kernel").arg(path).in_jail("").run();
    run(&kernel)?.ensure_code(0)?;
    let link = scratch.path("link");
    symlink(&kernel, &link)?;
    let instead = format!("name {} instead", kernel.display());
    run(&link)?.ensure_code(2)?.ensure_message(&[
        "boot.kernel (--kernel)",
        "is a symbolic link",
        &instead,
    ])?;
    let way = scratch.path("way");
    symlink(&scratch.path, &way)?;
    let through = way.join("bench_reset");
    run(&through)?.ensure_code(2)?.ensure_message(&["way is a symbolic link", &instead])?;
    fs::remove_file(&way)?;
    fs::hard_link(&kernel, scratch.path("other"))?;
    run(&kernel)?.ensure_code(2)?.ensure_message(&[
        "boot.kernel (--kernel)",
        "has 2 hard links",
        "cp --reflink=auto",
    ])?;
    fs::remove_file(scratch.path("other"))?;
    run(&scratch.path("none"))?.ensure_code(2)?.ensure_message(&["boot.kernel (--kernel)", "none"])?;
    // What is made by the machine has a directory, or the jail has none.
    let log = scratch.path("none").join("log");
    let vm = TestVm::bare().arg("--log-file").arg(&log).in_jail("").run()?.ensure_code(2)?;
    vm.ensure_message(&["log.file (--log-file): cannot open", "No such file"])?;
    Ok(())
}

fn what_a_jail_cannot_have_is_refused() -> Result<()> {
    for (options, args, words) in [
        ("", "--serial pty", "use \"unix=PATH\""),
        ("", "--serial unix=/vmm-jail-trial", "is in the root directory"),
        ("--network-namespace", "--net tap=tap0", "does not have the interface"),
        ("--user-namespace --uid 7", "", "--uid: only root"),
        ("--cgroup ../up", "", "--cgroup ../up"),
    ] {
        let vm = TestVm::bare().args(args).in_jail(options).run()?;
        vm.ensure_code(2).with_context(|| format!("{options} {args}"))?.ensure_message(&[words])?;
    }
    let vm = TestVm::program(monitor()).args("jail -- doctor").run()?;
    vm.ensure_code(2)?.ensure_message(&["jail runs `run` and nothing else"])?;
    Ok(())
}

fn descriptors_that_nobody_has_named_are_closed() -> Result<()> {
    let scratch = Scratch::new()?;
    let secret = scratch.path("secret");
    fs::write(&secret, "")?;
    let vm = TestVm::bare().arg("--kernel").arg(scratch.guest("bench_halt")?).in_jail("");
    let script = format!("exec 7<{}; exec \"$@\"", secret.display());
    let mut vm = vm.through_shell(&script).spawn()?;
    vm.wait_for_output("\x1e")?;
    let [first, machine] = inside(&vm)?;
    for process in [vm.process(), first, machine] {
        for entry in fs::read_dir(format!("/proc/{}/fd", process.pid()))? {
            let target = fs::read_link(entry?.path())?;
            ensure!(target != secret, "process {} has {}", process.pid(), secret.display());
        }
    }
    stopped(vm)?;
    // One that is named is still there, for better or worse.
    let vm = TestVm::bare().args("--net fd=7").in_jail("").through_shell("exec 7</dev/null; exec \"$@\"");
    vm.run()?.ensure_code(2)?.ensure_message(&["the descriptor 7 is no TAP"])?;
    Ok(())
}

/// Starts `vm` as the leader of a session on `terminal`.
fn on(terminal: &Terminal, vm: TestVm) -> Result<RunningVm> {
    vm.through("setsid --ctty").stdin(terminal.end()?).stdout(terminal.end()?).stderr(terminal.end()?).spawn()
}

fn keys_reach_the_guest_and_the_terminal_is_given_back() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut terminal = Terminal::new()?;
    let before = terminal.mode()?;
    let vm = TestVm::bare().arg("--kernel").arg(scratch.guest("serial_echo_irq")?).in_jail("");
    let vm = on(&terminal, vm)?;
    terminal.wait_for("ready", PATIENCE)?;
    // In the kernel's own mode this would be an interrupt.
    terminal.type_keys(b"a\x03b")?;
    terminal.wait_for("a\x03b", PATIENCE)?;
    terminal.type_keys(b"\x04")?;
    vm.wait()?.ensure_code(0)?;
    ensure!(terminal.mode()? == before, "the terminal is changed");
    let mut terminal = Terminal::new()?;
    let vm = on(&terminal, TestVm::bare().arg("--kernel").arg(scratch.guest("bench_halt")?).in_jail(""))?;
    terminal.wait_for("\x1e", PATIENCE)?;
    terminal.type_keys(b"\x01x")?;
    vm.wait()?.ensure_code(0)?;
    ensure!(terminal.mode()? == before, "the terminal is changed");
    Ok(())
}

fn a_jail_in_the_background_leaves_the_terminal_alone() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut terminal = Terminal::new()?;
    let before = terminal.mode()?;
    // With job control (`set -m`), what is started with `&` is not in the foreground.
    let script = "set -m; \"$@\" & echo started; read line; kill $!; wait $!; echo \"code $?\"";
    let vm =
        TestVm::bare().arg("--kernel").arg(scratch.guest("bench_halt")?).in_jail("").through("setsid --ctty");
    let vm = vm.through_shell(script);
    let vm = vm.stdin(terminal.end()?).stdout(terminal.end()?).stderr(terminal.end()?).spawn()?;
    terminal.wait_for("\x1e", PATIENCE)?;
    ensure!(terminal.mode()? == before, "a process in the background has changed the terminal");
    terminal.type_keys(b"\n")?;
    terminal.wait_for("code 0", PATIENCE)?;
    vm.wait()?.ensure_code(0)?;
    ensure!(terminal.mode()? == before, "the terminal is changed");
    Ok(())
}

fn a_control_group_goes_with_its_jail() -> Result<()> {
    let name = format!("vmm-jail-trial-{}", std::process::id());
    let options = format!("--cgroup {name}");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let root = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4)).flatten()
    });
    let scratch = Scratch::new()?;
    let Some(root) = root.map(Path::new) else {
        let vm = TestVm::bare().in_jail(&options).run()?.ensure_code(3)?;
        vm.ensure_message(&["no control groups of version 2"])?;
        return Ok(());
    };
    let group = root.join(&name);
    let vm = halted(&scratch, &options, "")?;
    let [first, machine] = inside(&vm)?;
    let members = fs::read_to_string(group.join("cgroup.procs"))?;
    for process in [first, machine] {
        ensure!(members.lines().any(|pid| pid == process.pid().to_string()), "{members:?}");
    }
    let second = TestVm::bare().in_jail(&options).run()?.ensure_code(2)?;
    second.ensure_message(&["another machine runs in it"])?;
    stopped(vm)?;
    ensure!(!group.exists(), "{} is left", group.display());
    let limits = format!("{options} --memory-max 1G --cpu-max 150 --pids-max 64");
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    let has = |name| controllers.split_whitespace().any(|controller| controller == name);
    if !["memory", "cpu", "pids"].into_iter().all(has) {
        // A host with groups of version 1 has the controllers there.
        let vm = TestVm::bare().in_jail(&limits).run()?.ensure_code(3)?;
        vm.ensure_message(&["--cgroup: the controller", "is not to be had in"])?;
        ensure!(!group.exists(), "{} is left", group.display());
        return Ok(());
    }
    let vm = halted(&scratch, &limits, "")?;
    for (file, value) in [("memory.max", "1073741824"), ("cpu.max", "150000 100000"), ("pids.max", "64")] {
        let found = fs::read_to_string(group.join(file))?;
        ensure!(found.trim() == value, "{file} has {found:?}");
    }
    stopped(vm)?;
    ensure!(!group.exists(), "{} is left", group.display());
    Ok(())
}
