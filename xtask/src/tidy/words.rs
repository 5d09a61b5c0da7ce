//! Words: what no code may contain, and what the code of one crate may not name.

use super::Problem;
use super::source::{Kind, Source, Token};

/// Macros and attributes that leave something undone.
const UNDONE: [&str; 2] = ["todo", "unimplemented"];

/// For each crate, what its identifiers may not name: the invariants on who knows what. Several words joined by `_`
/// stand for these words in a row, in whatever case they are written.
const FOREIGN: [(&str, &[&str]); 2] = [
    (
        "vmm-vcpu/src/",
        &[
            "vmm_devices",
            "vmm_memory",
            "vm_superio",
            "virtio",
            "pci",
            "serial",
            "uart",
            "i8042",
            "cmos",
            "rtc",
            "com1",
            "terminal",
            "console",
            "tty",
            "termios",
            "stdin",
            "stdout",
        ],
    ),
    ("vmm-devices/src/", &["gsi", "kvm", "vm_fd", "vcpu_fd"]),
];

/// Where threads may be started that have no table of system calls: what starts all others, and threads that end before a guest runs.
const THREADS: [&str; 3] = ["vmm-core/src/thread/mod.rs", "vmm-vcpu/src/affinity.rs", "vmm-cli/src/run.rs"];

pub fn check(source: &Source<'_>) -> Vec<Problem> {
    let mut problems = undone(source);
    problems.extend(threads(source));
    for (directory, foreign) in FOREIGN.iter().filter(|(directory, _)| source.path.starts_with(directory)) {
        let krate = directory.trim_end_matches("/src/");
        for ident in source.tokens.iter().filter(|token| token.kind == Kind::Ident) {
            if let Some(word) = foreign.iter().find(|word| names(&ident.text, word)) {
                let text = format!("{} names {word}, which {krate} does not know", ident.text);
                problems.push(Problem::new(source.path, ident.line, text));
            }
        }
    }
    problems
}

/// Threads that are started without a kind. (Tests start theirs by `thread::spawn`.)
fn threads(source: &Source<'_>) -> Vec<Problem> {
    let is_ours = source.path.starts_with("vmm-") && source.path.contains("/src/");
    if !is_ours || THREADS.contains(&source.path) {
        return Vec::new();
    }
    let idents: Vec<_> = source.tokens.iter().filter(|token| token.kind == Kind::Ident).collect();
    let found = idents.windows(2).filter(|pair| pair[0].is("thread") && pair[1].is("Builder"));
    let text = "a thread is started by vmm_core::thread::spawn, as one of its kind";
    found.map(|pair| Problem::new(source.path, pair[1].line, text.to_owned())).collect()
}

fn undone(source: &Source<'_>) -> Vec<Problem> {
    let is_macro = |pair: &&[Token]| pair[1].is("!") && UNDONE.iter().any(|name| pair[0].is(name));
    let macros = source.tokens.windows(2).filter(is_macro).map(|pair| &pair[0]);
    let is_ignore = |attribute: &[Token]| {
        let is_named = attribute.first().is_some_and(|name| name.is("ignore") || name.is("cfg_attr"));
        is_named.then(|| attribute.iter().position(|token| token.is("ignore"))).flatten()
    };
    let attributes =
        source.attributes().filter_map(|attribute| is_ignore(attribute).map(|at| &attribute[at]));
    let found = macros.chain(attributes);
    found
        .map(|token| Problem::new(source.path, token.line, format!("{} leaves something undone", token.text)))
        .collect()
}

/// Whether the identifier contains the words of `phrase`, in that order and next to each other.
fn names(ident: &str, phrase: &str) -> bool {
    let ident = split(ident);
    let phrase: Vec<_> = phrase.split('_').map(str::to_owned).collect();
    ident.windows(phrase.len()).any(|words| words == phrase)
}

/// `VmFd`, `vm_fd` and `VM_FD` are the words `vm` and `fd`; `GSITable` is `gsi` and `table`.
fn split(ident: &str) -> Vec<String> {
    let chars: Vec<char> = ident.chars().collect();
    let mut words = vec![String::new()];
    for (index, &letter) in chars.iter().enumerate() {
        let follows_lower = index > 0 && !chars[index - 1].is_uppercase();
        let before_lower = chars.get(index + 1).is_some_and(|next| next.is_lowercase());
        if letter == '_' || (letter.is_uppercase() && (follows_lower || before_lower)) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| letter != '_') {
            word.extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &str, text: &str) -> Vec<String> {
        check(&Source::read(path, text).unwrap()).into_iter().map(|problem| problem.text).collect()
    }

    #[test]
    fn undone_macros_and_ignored_tests_are_found_and_words_in_strings_are_not() {
        assert_eq!(texts("a.rs", "fn f() { todo!() }"), ["todo leaves something undone"]);
        assert_eq!(
            texts("a.rs", "fn f() { std::unimplemented!(\"x\") }"),
            ["unimplemented leaves something undone"]
        );
        assert_eq!(texts("a.rs", "#[ignore = \"slow\"]\nfn f() {}"), ["ignore leaves something undone"]);
        assert_eq!(texts("a.rs", "#[cfg_attr(miri, ignore)]\nfn f() {}"), ["ignore leaves something undone"]);
        assert_eq!(
            texts("a.rs", "// todo!()\nconst A: &str = \"#[ignore] todo!()\"; fn ignore() {}"),
            [""; 0]
        );
    }

    #[test]
    fn vcpu_code_names_no_device_and_devices_name_no_kvm() {
        let text = "use vmm_devices::Bus;";
        assert_eq!(
            texts("vmm-vcpu/src/a.rs", text),
            ["vmm_devices names vmm_devices, which vmm-vcpu does not know"]
        );
        assert_eq!(texts("vmm-cli/src/a.rs", text), [""; 0]);
        assert_eq!(
            texts("vmm-devices/src/a.rs", "fn f(fd: VmFd, next_gsi: u32) {}"),
            [
                "VmFd names vm_fd, which vmm-devices does not know",
                "next_gsi names gsi, which vmm-devices does not know"
            ]
        );
    }

    #[test]
    fn threads_without_a_kind_are_found() {
        let text = "fn f() { std::thread::Builder::new().spawn(g); }";
        assert_eq!(
            texts("vmm-devices/src/a.rs", text),
            ["a thread is started by vmm_core::thread::spawn, as one of its kind"]
        );
        assert_eq!(texts("vmm-cli/src/run.rs", text), [""; 0]);
        assert_eq!(texts("tests/src/a.rs", text), [""; 0]);
    }

    #[test]
    fn words_inside_other_words_and_in_comments_are_not_names() {
        let text = "// the serial port\nfn serialize(ioport: Port, logsink: u8, e: &str) -> &str { \"pci\" }";
        assert_eq!(texts("vmm-vcpu/src/a.rs", text), [""; 0]);
    }

    #[test]
    fn identifiers_are_split_at_case_and_underscores() {
        for (ident, words) in [
            ("GSITable", vec!["gsi", "table"]),
            ("KVM_IRQ_LINE", vec!["kvm", "irq", "line"]),
            ("set_gsi", vec!["set", "gsi"]),
            ("I8042Reset", vec!["i8042", "reset"]),
        ] {
            assert_eq!(split(ident), words, "{ident}");
        }
    }
}
