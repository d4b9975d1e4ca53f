//! Boards of agents over loopback: what the collector's page shows is what each machine's monitor says.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use leakscope_alerts::Secret;
use leakscope_alerts::book::sample_finding;
use leakscope_board::{Board, Machines, TargetView, Verdict};
use leakscope_collect::{CollectError, CollectOptions, Collector, Gallery, Push, PushOptions, serve};
use leakscope_history::{History, METRICS, TargetSample};
use tempfile::TempDir;

struct Place {
    folder: TempDir,
    collector: Collector,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = folder.path().join("tokens");
        std::fs::create_dir(&tokens).unwrap();
        for machine in ["web1", "web2"] {
            std::fs::write(tokens.join(machine), format!("0123456789abcdef-of-{machine}\n")).unwrap();
        }
        std::fs::write(folder.path().join("stranger"), "0123456789abcdef-of-nobody\n").unwrap();
        let options = CollectOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            tokens,
            tls: None,
            behind_proxy: false,
            state: folder.path().join("state"),
            queue: 8,
        };
        let collector = serve(&options, mpsc::channel().0).unwrap();
        Self { folder, collector }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn push(&self, token: &str, history: &Path) -> Push {
        let (url, token) = (format!("http://{}/", self.collector.address), self.folder.path().join(token));
        Push::new(PushOptions { url, token: Secret::File(token), ca_file: None, history: history.to_owned() }).unwrap()
    }
}

fn target(id: &str, verdict: Verdict) -> TargetView {
    TargetView {
        id: id.to_owned(),
        verdict,
        words: "words".to_owned(),
        memory: Some(1e9 + 0.25),
        resident: None,
        live_heap: None,
        threads: Some(3.0),
        descriptors: None,
        per_hour: Some(6e7),
        parts: Vec::new(),
        arenas: None,
        limit: Some(8e9),
        limit_of: Some("the machine's memory".to_owned()),
        hours_left: Some(116.0),
        since: Some(1_795_000_000),
        restarts: 2,
        seen: 1_795_400_000,
        spark: (0..48).map(|step| f64::from(step) * 1e6 + 0.5).collect(),
    }
}

fn board(passes: u64) -> Board {
    Board {
        at: 1_795_400_000 + passes,
        machine: "what it calls itself".to_owned(),
        interval_seconds: 10,
        pass_seconds: 0.004,
        passes,
        undelivered: 0,
        targets: vec![target("kernel:slab", Verdict::Stable), target("name:shop", Verdict::Growing)],
        alarms: vec![sample_finding(1_795_400_000)],
    }
}

#[test]
fn a_board_comes_back_as_it_was_under_the_name_of_its_token() {
    let place = Place::new();
    let path = place.folder.path().join("history.sqlite");
    let (mut history, _) = History::open(&path).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut values = [None; METRICS];
    values[0] = Some(5);
    history.write_tick(now - 60, &[TargetSample { target: "name:shop".into(), life: 0, values }], &[]).unwrap();
    let gallery = Gallery::new(&place.state());
    assert!(gallery.all().is_empty() && gallery.board("web1").is_none() && gallery.history("web1").is_none());
    let mut push = place.push("tokens/web1", &path);
    push.drain().unwrap();
    // Samples alone: the machine is there, and nothing is said of it.
    let all = gallery.all();
    assert_eq!((all.len(), all[0].first.is_none(), all[0].interval_seconds), (1, true, None));
    push.send_board(&board(7)).unwrap();
    let expected = Board { machine: "web1".to_owned(), ..board(7) };
    assert_eq!(gallery.board("web1"), Some(expected));
    let all = gallery.all();
    let first = all[0].first.as_ref().unwrap();
    assert_eq!((all[0].machine.as_str(), first.id.as_str(), all[0].alarms), ("web1", "name:shop", 1));
    assert_eq!(all[0].targets[1], ("name:shop".to_owned(), Verdict::Growing));
    assert!(all[0].seen >= now - 1 && all[0].seen <= now + 600, "{} {now}", all[0].seen);
    assert!(History::open_read_only(&gallery.history("web1").unwrap()).unwrap().newest().is_some());
    // The newest one counts, also for a gallery that has told of the one before; a new gallery reads it from the disk.
    let mut next = board(8);
    next.targets.truncate(1);
    push.send_board(&next).unwrap();
    for gallery in [&gallery, &Gallery::new(&place.state())] {
        assert_eq!(gallery.board("web1").unwrap().passes, 8);
        assert_eq!(gallery.all()[0].targets.len(), 1);
    }
    for name in ["web2", "", ".", "..", "../machines/web1", "web1/../web1"] {
        assert!(gallery.board(name).is_none() && gallery.history(name).is_none(), "{name}");
    }
}

#[test]
fn what_another_machine_says_is_text_of_bounded_length() {
    let place = Place::new();
    let mut made = board(1);
    made.targets[1].id = "name:a\u{202e}b\u{1b}[31m".to_owned();
    made.targets[1].words = "x".repeat(100_000);
    made.targets[1].spark = vec![1.0; 5000];
    let alarm = &mut made.alarms[0];
    alarm.title = "one\ntwo".to_owned();
    alarm.details = vec!["\u{0}".to_owned(); 1000];
    alarm.evidence[0].stack = vec!["f\n".to_owned(); 5000];
    place.push("tokens/web2", Path::new("/nonexistent")).send_board(&made).unwrap();
    let kept = std::fs::read(place.state().join("machines/web2/board.json")).unwrap();
    let kept: Board = serde_json::from_slice(&kept).unwrap();
    let target = &kept.targets[1];
    assert_eq!(
        (target.id.as_str(), target.words.len(), target.spark.len()),
        ("name:a\u{fffd}b\u{fffd}[31m", 2000, 256)
    );
    let alarm = &kept.alarms[0];
    assert_eq!(
        (alarm.title.as_str(), alarm.details.len(), alarm.details[0].as_str()),
        ("one\u{fffd}two", 200, "\u{fffd}")
    );
    assert_eq!((alarm.evidence[0].stack.len(), alarm.evidence[0].stack[0].as_str()), (256, "f\u{fffd}"));
}

#[test]
fn strangers_and_nonsense_leave_nothing() {
    let place = Place::new();
    let refused = place.push("stranger", Path::new("/nonexistent")).send_board(&board(1));
    assert!(matches!(refused, Err(CollectError::Answer { status: 401, .. })), "{refused:?}");
    let curl = |body: &[u8]| {
        let file = place.folder.path().join("body");
        std::fs::write(&file, body).unwrap();
        let output = std::process::Command::new("curl")
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Content-Encoding: zstd"])
            .args(["-H", "Authorization: Bearer 0123456789abcdef-of-web1", "--data-binary"])
            .arg(format!("@{}", file.display()))
            .arg(format!("http://{}/v1/board", place.collector.address))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let packed = |text: &str| zstd::bulk::compress(text.as_bytes(), 3).unwrap();
    for text in ["{}", "[]", "", "{\"at\": -1}", "{\"targets\": 3}"] {
        assert_eq!(curl(&packed(text)), "400", "{text}");
    }
    assert_eq!((curl(b"{}"), curl(&vec![0; 3 << 20])), ("400".to_owned(), "413".to_owned()));
    assert!(!place.state().join("machines").exists());
    // What is too long to be sent goes without its charts; what is too long without them is not sent.
    let mut state = 88_172_645_463_325_252u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut large = board(3);
    large.targets = (0..9000)
        .map(|number| TargetView {
            spark: (0..48).map(|_| random() as f64).collect(),
            ..target(&format!("name:{number}"), Verdict::Stable)
        })
        .collect();
    let push = place.push("tokens/web1", Path::new("/nonexistent"));
    push.send_board(&large).unwrap();
    let kept = Gallery::new(&place.state()).board("web1").unwrap();
    assert!(kept.targets.len() == 9000 && kept.targets.iter().all(|target| target.spark.is_empty()));
    large.targets.iter_mut().for_each(|target| target.words = (0..40).map(|_| format!("{:x}", random())).collect());
    let refused = push.send_board(&large).unwrap_err().to_string();
    assert!(refused.contains("a board of 9000 targets is too long"), "{refused}");
    assert_eq!(Gallery::new(&place.state()).board("web1").unwrap().passes, 3);
}
