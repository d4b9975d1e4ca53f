//! The history against a plain list that is kept beside it, and against being killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use leakscope_history::{Event, Found, History, HistoryError, METRICS, Row, Scale, TargetSample, Values};

fn values(resident: u64) -> Values {
    let mut values = [None; METRICS];
    values[0] = Some(resident);
    values[5] = Some(7);
    values
}

fn sample(target: &str, life: u16, resident: u64) -> TargetSample {
    TargetSample { target: target.to_owned(), life, values: values(resident) }
}

#[test]
fn what_was_written_is_read_at_every_scale() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.sqlite");
    let (mut history, damaged) = History::open(&path).unwrap();
    assert_eq!(damaged, None);
    let start = 1_700_000_000 / 3600 * 3600;
    let mut kept = Vec::new();
    for step in 0..3000u64 {
        let (at, life, resident) = (start + step * 10, u16::from(step > 1000), 1_000_000 + step * step % 777);
        history.write_tick(at, &[sample("a", life, resident), sample("b", 0, 5)], &[]).unwrap();
        kept.push((at, life, resident));
    }
    let found: Vec<_> = history.rows("a", Scale::Raw, 0, u64::MAX >> 1).unwrap();
    let facts: Vec<_> = found.iter().map(|row| (row.at, row.life, row.values[0].unwrap())).collect();
    assert_eq!(facts, kept);
    let hours = history.rows("a", Scale::Hour, start, start + 3599).unwrap();
    let first: Vec<u64> = kept.iter().filter(|(at, ..)| *at < start + 3600).map(|kept| kept.2).collect();
    let mean = (first.iter().sum::<u64>() as f64 / first.len() as f64).round() as u64;
    let extremes = Some((*first.iter().min().unwrap(), *first.iter().max().unwrap()));
    assert_eq!(hours, [Row { at: start, life: 0, values: values(mean), extremes }]);
    assert_eq!(history.rows("c", Scale::Raw, 0, u64::MAX >> 1).unwrap(), []);
    drop(history);
    let reader = History::open_read_only(&path).unwrap();
    assert_eq!(reader.targets(), ["a", "b"]);
    assert_eq!(reader.all_rows("a", start + 30_000).unwrap().len(), 3000);
}

/// Against the three scales read whole: in pieces nothing is missing, nothing is twice, and no piece is long.
#[test]
fn a_year_in_pieces_is_the_year() {
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let path = folder.path().join("history.sqlite");
    let start = 1_700_000_000 / 3600 * 3600;
    leakscope_history::generate_year(&path, 1, start).unwrap();
    let history = History::open_read_only(&path).unwrap();
    let name = "name:program0";
    for now in [start + 365 * 86_400, start + 364 * 86_400 + 1234, start + 500 * 86_400, 5] {
        let whole = |scale, from, to| history.rows(name, scale, from, to).unwrap();
        let (hours, minutes) = (now.saturating_sub(30 * 86_400), now.saturating_sub(2 * 86_400));
        let expected = [
            whole(Scale::Hour, 0, hours),
            whole(Scale::FiveMinutes, hours + 1, minutes),
            whole(Scale::Raw, minutes + 1, u64::MAX >> 1),
        ]
        .concat();
        let (mut found, mut longest) = (Vec::new(), 0);
        let take = &mut |rows: &[Row]| {
            longest = longest.max(rows.len());
            found.extend_from_slice(rows);
        };
        history.all_pieces(name, now, take).unwrap();
        assert_eq!(found, expected, "{now}");
        // What lies beyond the clock, and what should have been forgotten, is read at once.
        assert!(longest <= 1200 || now != start + 365 * 86_400, "{now}: {longest}");
        assert_eq!(history.all_rows(name, now).unwrap(), expected);
    }
}

#[test]
fn a_year_fits_and_is_fast() {
    // In memory: 8,784 commits that reach a disk take a minute, and are not what is measured here.
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let path = folder.path().join("history.sqlite");
    let (mut history, _) = History::open(&path).unwrap();
    let start = 1_700_000_000 / 3600 * 3600;
    // A tick an hour gives a year of hourly rows; what is finer is forgotten as time goes on.
    let targets: Vec<String> = (0..4).map(|number| format!("name:program{number}")).collect();
    for step in 0..366 * 24u64 {
        let samples: Vec<_> =
            targets.iter().map(|name| sample(name, 0, 1 << 28 | step.wrapping_mul(40_503) & 0xf_ffff)).collect();
        history.write_tick(start + step * 3600, &samples, &[]).unwrap();
    }
    let bytes = std::fs::metadata(&path).unwrap().len();
    let begin = std::time::Instant::now();
    let rows = history.rows(&targets[3], Scale::Hour, start, start + 366 * 86_400).unwrap();
    let took = begin.elapsed();
    assert_eq!(rows.len(), 366 * 24);
    assert!(took.as_millis() < 200, "{took:?}");
    assert!(bytes / targets.len() as u64 * 1000 < 2 << 30, "{bytes} bytes for {} targets", targets.len());
    let oldest_raw = history.rows(&targets[0], Scale::Raw, 0, u64::MAX >> 1).unwrap()[0].at;
    assert!(oldest_raw > start + 363 * 86_400);
}

/// Names that came and went are forgotten with their last row, and so is what was kept of their lives.
#[test]
fn targets_without_rows_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h");
    let (mut history, _) = History::open(&path).unwrap();
    history.set_facts(&[("life a".to_owned(), "1 2 a"), ("life b".to_owned(), "3 4 b")]).unwrap();
    history.write_tick(1000, &[sample("a", 0, 1), sample("b", 0, 2)], &[]).unwrap();
    // The first tick of another hour: `c` is new in it, and has no chunk yet.
    history.write_tick(5000, &[sample("b", 0, 2), sample("c", 0, 3)], &[]).unwrap();
    assert_eq!(history.targets(), ["a", "b", "c"]);
    history.write_tick(431 * 86_400, &[sample("b", 0, 2), sample("d", 0, 3)], &[]).unwrap();
    assert_eq!(history.targets(), ["b", "d"]);
    assert_eq!((history.fact("life a").unwrap(), history.fact("life b").unwrap().as_deref()), (None, Some("3 4 b")));
    drop(history);
    let (mut history, _) = History::open(&path).unwrap();
    assert_eq!(history.targets(), ["b", "d"]);
    history.write_tick(431 * 86_400 + 10, &[sample("a", 0, 7)], &[]).unwrap();
    let rows = history.rows("a", Scale::Raw, 0, u64::MAX >> 1).unwrap();
    assert_eq!(rows.iter().map(|row| row.values[0]).collect::<Vec<_>>(), [Some(7)], "an old number is not another's");
}

#[test]
fn events_and_facts() {
    let folder = tempfile::tempdir().unwrap();
    let (mut history, _) = History::open(&folder.path().join("h")).unwrap();
    let event = |at, target: &str| Event { at, target: target.into(), kind: "restart".into(), text: "x'y\"".into() };
    history.write_tick(10, &[], &[event(9, "a"), event(10, "b")]).unwrap();
    assert_eq!(history.events(Some("a"), 9).unwrap(), [event(9, "a")]);
    assert_eq!(history.events(None, 1).unwrap(), [event(10, "b")]);
    history.set_facts(&[("k".to_owned(), "1"), ("k".to_owned(), "2")]).unwrap();
    assert_eq!((history.fact("k").unwrap().as_deref(), history.fact("x").unwrap()), (Some("2"), None));
}

#[test]
fn findings_keep_when_they_were_seen_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h");
    let (mut history, _) = History::open(&path).unwrap();
    let one = |source: &str, fingerprint: &str, at| Found {
        target: "a".into(),
        source: source.into(),
        fingerprint: fingerprint.into(),
        title: format!("at {at}"),
        stack: vec!["malloc".into(), "f (x.c:3)".into()],
        bytes: at,
        blocks: u64::MAX,
        first_at: at,
        last_at: at,
    };
    history.note_found(&[one("ledger", "f1", 100), one("ledger", "f2", 100)]).unwrap();
    history.note_found(&[one("ledger", "f1", 200), one("leak check", "f1", 50)]).unwrap();
    drop(history);
    let history = History::open_read_only(&path).unwrap();
    let found = history.found(Some("a"), 9).unwrap();
    let facts: Vec<_> = found.iter().map(|f| (f.fingerprint.as_str(), f.first_at, f.last_at, f.bytes)).collect();
    assert_eq!(facts, [("f1", 100, 200, 200), ("f2", 100, 100, 100), ("f1", 50, 50, 50)]);
    assert_eq!((found[0].stack.len(), found[0].title.as_str(), found[0].blocks), (2, "at 200", i64::MAX as u64));
    assert_eq!((history.first_seen("a", "f1").unwrap(), history.first_seen("b", "f1").unwrap()), (Some(50), None));
    assert_eq!(history.found(Some("b"), 9).unwrap(), []);
    drop(history);
    // An hour's step 401 days later forgets them.
    let (mut history, _) = History::open(&path).unwrap();
    history.write_tick(300, &[], &[]).unwrap();
    history.write_tick(401 * 86_400, &[], &[]).unwrap();
    assert_eq!(history.found(None, 9).unwrap(), []);
}

/// A file of the first version is read, and goes on.
#[test]
fn a_file_of_the_first_version_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("h");
    let (mut history, _) = History::open(&path).unwrap();
    history.write_tick(10, &[sample("a", 0, 5)], &[]).unwrap();
    drop(history);
    let script = "DROP TABLE findings; DROP TABLE profiles; DROP TABLE stacks; PRAGMA user_version = 1;";
    let done = Command::new("sqlite3").arg(&path).arg(script).status().expect("sqlite3 is installed");
    assert!(done.success());
    let (history, damaged) = History::open(&path).unwrap();
    assert_eq!((damaged, history.found(None, 9).unwrap().len(), history.targets()), (None, 0, vec!["a".to_owned()]));
    assert_eq!(history.profiles("a").unwrap(), []);
}

/// 500 targets for a year by their hourly rows, as a daemon writes them: the chart of each is fast, and 1,000 targets fit.
#[test]
fn a_year_of_500_targets() {
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let path = folder.path().join("history.sqlite");
    let start = 1_700_000_000 / 3600 * 3600;
    let bytes = leakscope_history::generate_year(&path, 500, start).unwrap();
    let history = History::open_read_only(&path).unwrap();
    let mut longest = std::time::Duration::ZERO;
    for number in [0, 250, 499] {
        let begin = std::time::Instant::now();
        let rows = history.rows(&format!("name:program{number}"), Scale::Hour, start, start + 366 * 86_400).unwrap();
        longest = longest.max(begin.elapsed());
        assert_eq!(rows.len(), 365 * 24, "{number}");
        assert!(rows.windows(2).all(|pair| pair[1].at == pair[0].at + 3600));
    }
    eprintln!("500 targets: {bytes} bytes, a year's chart in {longest:?}");
    assert!(longest.as_millis() < 200, "{longest:?}");
    assert!(bytes * 2 < 2_000_000_000, "{bytes} bytes for 500 targets");
}

/// Stretch by stretch, of any size, each tick comes once, also across hours that have become chunks.
#[test]
fn stretches_hold_each_tick_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut history, _) = History::open(&folder.path().join("h")).unwrap();
    let start = 1_700_000_000 / 3600 * 3600;
    let mut kept = Vec::new();
    for step in 0..900u64 {
        let at = start + step * 10 + u64::from(step > 300) * 20_000;
        let mut samples = vec![sample("a", 0, step)];
        if step % 3 == 0 {
            samples.push(sample("b", 1, step * 2));
        }
        let event = Event { at, target: "a".into(), kind: "restart".into(), text: step.to_string() };
        history.write_tick(at, &samples, &[event]).unwrap();
        kept.push((at, samples));
    }
    for most in [1, 2, 7, 100, 10_000] {
        let (mut found, mut events, mut after) = (Vec::new(), 0, 0);
        loop {
            let stretch = history.stretch(after, most).unwrap();
            assert_eq!(stretch.after, after);
            if stretch.ticks.is_empty() {
                break;
            }
            let samples: usize = stretch.ticks.iter().map(|tick| tick.samples.len()).sum();
            assert!(samples <= most || stretch.ticks.len() == 1, "{samples} of {most}");
            events += stretch.events.len();
            found.extend(stretch.ticks.into_iter().map(|tick| (tick.at, tick.samples)));
            after = stretch.upto;
        }
        assert!(found == kept, "{most}: {} ticks of {}", found.len(), kept.len());
        assert_eq!((events, after), (900, kept.last().unwrap().0), "{most}");
    }
    let other = History::open(&folder.path().join("other")).unwrap().0;
    let (one, two) = (history.stream().unwrap(), other.stream().unwrap());
    assert!(one != two && one.len() == 32, "{one} {two}");
}

/// What is left when the writer is killed while it makes the file: empty, or only what SQLite puts in front.
#[test]
fn a_file_that_nobody_got_to_write_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let only_journal_mode = |path: &Path| {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
    };
    let makers: [&dyn Fn(&Path); 2] = [&|path| std::fs::write(path, []).unwrap(), &only_journal_mode];
    for (number, make) in makers.into_iter().enumerate() {
        let path = folder.path().join(format!("{number}.sqlite"));
        make(&path);
        let refused = History::open_read_only(&path).unwrap_err();
        assert!(matches!(refused, HistoryError::Unbegun { .. }), "{refused}");
        let (mut history, aside) = History::open(&path).unwrap();
        assert_eq!(aside, None);
        history.write_tick(1_700_000_000, &[sample("a", 0, 1)], &[]).unwrap();
        assert_eq!(History::open_read_only(&path).unwrap().targets(), ["a"]);
    }
}

#[test]
fn a_damaged_file_is_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.sqlite");
    std::fs::write(&path, "this is no database, however long it may be ".repeat(100)).unwrap();
    let (mut history, aside) = History::open(&path).unwrap();
    let aside = aside.unwrap();
    assert!(std::fs::read_to_string(aside).unwrap().starts_with("this is no"));
    history.write_tick(5, &[sample("a", 0, 1)], &[]).unwrap();
}

const WRITE_TO: &str = "LEAKSCOPE_TEST_WRITE_TO";

/// Not a test by itself: writes until it is killed, and says each tick that is committed.
#[test]
fn writer() {
    let Some(path) = std::env::var_os(WRITE_TO) else { return };
    let (mut history, _) = History::open(Path::new(&path)).unwrap();
    let mut at = history.rows("a", Scale::Raw, 0, u64::MAX >> 1).unwrap().last().map_or(7200, |row| row.at);
    loop {
        // Hours go by quickly, so that some of the kills meet the hourly step.
        at += 400;
        history.write_tick(at, &[sample("a", 0, at), sample("b", 0, at)], &[]).unwrap();
        println!("committed {at}");
    }
}

#[test]
fn killed_at_any_moment_nothing_committed_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.sqlite");
    let mut last = 0;
    for round in 0..40u32 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--nocapture", "--test-threads=1"])
            .env(WRITE_TO, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut committed = last;
        for _ in 0..round % 7 + 2 {
            let line = lines.next().unwrap().unwrap();
            if let Some((_, at)) = line.split_once("committed ") {
                committed = at.parse().unwrap();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said between our last look and its end.
        committed = lines
            .map_while(Result::ok)
            .filter_map(|l| l.split_once("committed ")?.1.parse().ok())
            .fold(committed, u64::max);
        let (history, damaged) = History::open(&path).unwrap();
        assert_eq!(damaged, None, "round {round}");
        let rows = history.rows("a", Scale::Raw, 0, u64::MAX >> 1).unwrap();
        let newest = rows.last().map_or(0, |row| row.at);
        assert!(newest >= committed, "round {round}: {newest} {committed}");
        assert!(rows.windows(2).all(|pair| pair[1].at == pair[0].at + 400), "round {round}: a tick twice or none");
        assert!(rows.iter().all(|row| row.values[0] == Some(row.at)));
        last = committed;
    }
}
