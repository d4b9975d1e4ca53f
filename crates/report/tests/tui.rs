//! The view in the terminal, drawn into memory: keys and what they show.

#[path = "../../findings/tests/support/mod.rs"]
mod support;

use leakscope_findings::analysis::{LeakCheck, analyse};
use leakscope_findings::recording::ProcessRecording;
use leakscope_findings::{Options, Suppressions};
use leakscope_model::LeakKindSet;
use leakscope_report::tui::{Key, Next, Tui};
use leakscope_report::{Metric, Process};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Cell;
use ratatui::style::Modifier;
use support::{SAMPLE_RULE, sample};

/// Lines of the screen after these keys.
fn after(recorded: &ProcessRecording, width: u16, height: u16, keys: &[Key]) -> Vec<String> {
    let options = Options { leak_check: LeakCheck::Full, show_leak_kinds: LeakKindSet::ALL, ..Options::default() };
    let mut suppressions = Suppressions::new();
    suppressions.add("app.supp", SAMPLE_RULE).unwrap();
    let analysis = analyse("0.1.0", recorded, &options, &suppressions);
    let mut read = |path: &str| (path == "/work/src/app.c").then(|| (1..=60).map(|n| format!("line {n}\n")).collect());
    let mut tui = Tui::new(&[Process { recorded, analysis: &analysis }], Metric::Leaked, &mut read);
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| tui.draw(frame)).unwrap();
    for &key in keys {
        assert_eq!(tui.key(key), Next::Go, "{key:?}");
        terminal.draw(|frame| tui.draw(frame)).unwrap();
    }
    let buffer = terminal.backend().buffer();
    // The selected row gets a mark, for its colours are not seen here.
    let line = |cells: &[Cell]| {
        let text: String = cells.iter().map(Cell::symbol).collect();
        let is_selected = cells[0].modifier.contains(Modifier::REVERSED);
        format!("{}{}", text.trim_end(), if is_selected { " <<" } else { "" })
    };
    buffer.content().chunks(width.into()).map(line).collect()
}

fn shown(keys: &[Key]) -> Vec<String> {
    after(&sample(), 100, 30, keys)
}

fn letters(text: &str) -> Vec<Key> {
    text.chars().map(Key::Letter).collect()
}

fn has(screen: &[String], words: &str) -> bool {
    screen.iter().any(|line| line.contains(words))
}

#[test]
fn it_starts_where_paths_part() {
    let screen = shown(&[]);
    assert!(has(&screen, "leakscope app (4242)") && has(&screen, "4,160 bytes"), "{screen:#?}");
    let rows: Vec<&str> = screen[2..6].iter().map(|line| line.trim_start()).collect();
    assert!(rows[0].starts_with("4,160 100.0%  - all <<"), "{rows:?}");
    assert!(rows[1].starts_with("4,160 100.0%   - main  app.c:40"), "{rows:?}");
    assert!(rows[2].starts_with("4,096  98.5%    + Cache::add(int)  cache.cpp:7"), "{rows:?}");
    assert!(rows[3].starts_with("48   1.2%    + build_list  app.c:20"), "{rows:?}");
}

#[test]
fn arrows_open_and_close() {
    use Key::*;
    let open = shown(&[Down, Down, Right]);
    assert!(has(&open, "- Cache::add(int)") && has(&open, "operator new(unsigned long)"), "{open:#?}");
    let closed = shown(&[Down, Down, Right, Left]);
    assert!(has(&closed, "+ Cache::add(int)") && !has(&closed, "operator new"), "{closed:#?}");
    assert_eq!(shown(&letters("jj+")), open);
    assert_eq!(shown(&[Down, Down, Enter]), open);
    assert_eq!(shown(&[Down, Down, Enter, Enter]), closed);
    // From a closed row to the caller, and closing that.
    let nothing = shown(&[Down, Down, Left, Left, Left, Left]);
    assert!(has(&nothing, "+ all") && !has(&nothing, "main"), "{nothing:#?}");
}

#[test]
fn the_source_of_the_selection_is_shown() {
    let screen = shown(&[Key::Down]);
    assert!(has(&screen, " /work/src/app.c:40 ") && has(&screen, "40  line 40"), "{screen:#?}");
    let screen = shown(&[Key::Down, Key::Down]);
    assert!(has(&screen, "/work/src/cache.cpp:7") && has(&screen, "the source is not at hand"), "{screen:#?}");
}

#[test]
fn search_opens_the_way() {
    let found = shown(&[letters("/NODE"), vec![Key::Enter]].concat());
    assert!(has(&found, "make_node") && has(&found, "10  line 10"), "{found:#?}");
    assert!(has(&found, "             48   1.2%     + make_node  app.c:10 <<"), "{found:#?}");
    // The same function is on two paths; the next find is the other, and so is the one before.
    let again = shown(&[letters("/NODE"), vec![Key::Enter], letters("n")].concat());
    assert!(has(&again, "             16   0.4%    + make_node  app.c:10 <<"), "{again:#?}");
    assert_eq!(shown(&[letters("/NODE"), vec![Key::Enter], letters("N")].concat()), again);
    assert_eq!(shown(&[letters("/NODE"), vec![Key::Enter], letters("nN")].concat()), found);
    let none = shown(&[letters("/nowhere"), vec![Key::Enter]].concat());
    assert!(has(&none, "not found: nowhere"), "{none:#?}");
    let typed = shown(&[letters("/abc"), vec![Key::Backspace]].concat());
    assert_eq!(typed.last().unwrap(), "/ab_");
    assert_eq!(shown(&[letters("/abc"), vec![Key::Escape]].concat()), shown(&[]));
}

#[test]
fn metrics_go_round() {
    let live = shown(&letters("m"));
    assert!(has(&live, "1,239,604 bytes"), "{live:#?}");
    let none = shown(&letters("mmm"));
    assert!(has(&none, "no temporary blocks; m shows another view"), "{none:#?}");
    assert_eq!(shown(&letters("mmmmm")), shown(&[]));
    assert_eq!(shown(&[Key::Function(6)]), live);
}

#[test]
fn help_and_the_end() {
    assert!(has(&shown(&letters("h")), "Keys (any key goes back)"));
    assert_eq!(shown(&letters("hx")), shown(&[]));
    let recorded = ProcessRecording::default();
    let analysis = analyse("0.1.0", &recorded, &Options::default(), &Suppressions::new());
    for key in [Key::Letter('q'), Key::Function(10), Key::Interrupt] {
        let mut read = |_: &str| None;
        let mut tui = Tui::new(&[Process { recorded: &recorded, analysis: &analysis }], Metric::Leaked, &mut read);
        assert_eq!(tui.key(key), Next::Quit);
    }
}

/// Any keys on any screen.
#[test]
fn nothing_panics_on_small_screens_and_empty_recordings() {
    use Key::*;
    let keys = [
        Down,
        End,
        Right,
        PageDown,
        PageUp,
        Home,
        Left,
        Up,
        Enter,
        Letter('/'),
        Letter('x'),
        Enter,
        Letter('n'),
        Letter('N'),
        Letter('m'),
        Letter('h'),
        Escape,
        Letter('G'),
        Letter('g'),
        Letter('b'),
        Letter(' '),
    ];
    for recorded in [sample(), ProcessRecording::default()] {
        for (width, height) in [(1, 1), (20, 3), (40, 8), (200, 60)] {
            after(&recorded, width, height, &keys);
        }
    }
}

#[test]
fn hostile_names_are_shown_and_not_obeyed() {
    let mut recorded = sample();
    for string in recorded.strings.iter_mut().skip(1) {
        *string = "\x1b[2J\u{202e}\n".into();
    }
    recorded.process.executable = "\x1b]0;x\x07".to_owned();
    let screen = after(&recorded, 120, 30, &letters("mjjjj++"));
    assert!(has(&screen, "\\x1b[2J\\u{202e}\\x0a"), "{screen:#?}");
    assert!(screen.iter().all(|line| !line.contains(['\x1b', '\u{202e}', '\x07'])));
}
