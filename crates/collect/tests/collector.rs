//! A collector and agents over loopback: what arrives is what was there, and what should not arrive does not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use leakscope_alerts::Secret;
use leakscope_collect::{CollectError, CollectOptions, Push, PushOptions, history_of, machines, serve};
use leakscope_history::{Event, Found, History, METRICS, Row, Scale, Stretch, TargetSample};
use tempfile::TempDir;

const TOKEN: &str = "0123456789abcdef-of-web1";
/// A round hour not long ago, so that samples are still kept as they were taken.
fn start() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    now / 3600 * 3600 - 4 * 3600
}

struct Place {
    folder: TempDir,
    address: SocketAddr,
}

impl Place {
    fn new(queue: usize) -> Self {
        Self::with(tempfile::tempdir().unwrap(), queue, None)
    }

    fn with(folder: TempDir, queue: usize, tls: Option<(PathBuf, PathBuf)>) -> Self {
        let tokens = folder.path().join("tokens");
        std::fs::create_dir(&tokens).unwrap();
        for machine in ["web1", "web2"] {
            std::fs::write(tokens.join(machine), format!("0123456789abcdef-of-{machine}\n")).unwrap();
        }
        let options = CollectOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            tokens,
            tls: tls.clone(),
            behind_proxy: false,
            state: folder.path().join("state"),
            queue,
        };
        let collector = serve(&options, mpsc::channel().0).unwrap();
        assert_eq!((collector.machines, collector.complaints.len(), collector.is_tls), (2, 0, tls.is_some()));
        Self { folder, address: collector.address }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn push(&self, machine: &str, history: &Path) -> Push {
        self.push_to(&format!("http://{}/", self.address), machine, history, None)
    }

    fn push_to(&self, url: &str, machine: &str, history: &Path, ca_file: Option<PathBuf>) -> Push {
        let token = Secret::File(self.folder.path().join("tokens").join(machine));
        Push::new(PushOptions { url: url.to_owned(), token, ca_file, history: history.to_owned() }).unwrap()
    }

    /// What is answered to a request that asks to be the last of its connection.
    fn raw(&self, bytes: &[u8]) -> String {
        self.answer(bytes, false)
    }

    /// What is answered to bytes; after which nothing more can come, when they are cut.
    fn answer(&self, bytes: &[u8], is_cut: bool) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        // A server that has answered already may have closed.
        let _ = stream.write_all(bytes);
        if is_cut {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let mut text = Vec::new();
        let _ = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    fn post(&self, headers: &str, body: &[u8]) -> String {
        self.raw(&request(headers, body))
    }

    /// With token and encoding as they should be.
    fn post_text(&self, text: &str) -> String {
        let body = zstd::bulk::compress(text.as_bytes(), 3).unwrap();
        let headers =
            format!("Authorization: Bearer {TOKEN}\r\nContent-Encoding: zstd\r\nContent-Length: {}\r\n", body.len());
        self.post(&headers, &body)
    }
}

fn request(headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST /v1/stretches HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

/// Everything that a history holds of its targets, its events and its findings.
type All = (Vec<(String, Vec<Row>)>, Vec<Event>, Vec<Found>);

fn all(path: &Path) -> All {
    let history = History::open_read_only(path).unwrap();
    let rows = |target: String| {
        let rows = Scale::ALL.map(|scale| history.rows(&target, scale, 0, u64::MAX >> 1).unwrap()).concat();
        (target, rows)
    };
    let targets = history.targets().into_iter().map(rows).collect();
    (targets, history.events(None, 100_000).unwrap(), history.found(None, 1000).unwrap())
}

/// Ticks each 10 s, as a daemon would have written them.
fn write(path: &Path, from: u64, ticks: u64) {
    let (mut history, _) = History::open(path).unwrap();
    for step in 0..ticks {
        let at = from + step * 10;
        let sample = |target: &str, value: u64| {
            let mut values = [None; METRICS];
            (values[0], values[5], values[METRICS - 1]) = (Some(value), Some(3), Some(step % 5).filter(|&n| n > 0));
            TargetSample { target: target.to_owned(), life: (step / 500) as u16, values }
        };
        let samples = [sample("name:a", (1 << 40) | (step * step)), sample("kernel:slab", step % 7)];
        let event = Event { at, target: "name:a".into(), kind: "restart".into(), text: format!("step {step}") };
        let events: Vec<Event> = (step % 100 == 0).then_some(event).into_iter().collect();
        if step % 250 == 0 {
            let one = Found {
                target: "name:a".into(),
                source: "ledger".into(),
                fingerprint: format!("f{}", step % 3),
                title: "x".into(),
                stack: vec!["malloc".into(), "f (x.c:3)".into()],
                bytes: step,
                blocks: 1,
                first_at: at,
                last_at: at,
            };
            history.note_found(&[one]).unwrap();
        }
        history.write_tick(at, &samples, &events).unwrap();
    }
}

#[test]
fn what_arrives_is_what_was_there() {
    let place = Place::new(8);
    let path = place.folder.path().join("history.sqlite");
    let start = start();
    write(&path, start, 700);
    let mut push = place.push("web1", &path);
    assert_eq!(push.drain().unwrap().ticks, 700);
    assert_eq!(push.drain().unwrap().ticks, 0);
    assert_eq!(machines(&place.state()), ["web1"]);
    assert_eq!(all(&history_of(&place.state(), "web1")), all(&path));
    // It goes on, also with an agent that has forgotten everything, and another machine's is another history.
    write(&path, start + 7000, 500);
    assert_eq!(place.push("web1", &path).drain().unwrap().ticks, 500);
    assert_eq!(place.push("web2", &path).drain().unwrap().ticks, 1200);
    for machine in ["web1", "web2"] {
        assert_eq!(all(&history_of(&place.state(), machine)), all(&path), "{machine}");
    }
}

#[test]
fn a_stretch_that_is_sent_again_has_nothing_new() {
    let place = Place::new(8);
    let path = place.folder.path().join("history.sqlite");
    write(&path, start(), 400);
    let history = History::open_read_only(&path).unwrap();
    let (stream, first) = (history.stream().unwrap(), history.stretch(0, 100).unwrap());
    assert_eq!(first.ticks.len(), 50);
    let headers = format!("Authorization: Bearer {TOKEN}\r\nContent-Encoding: zstd\r\n");
    let post = |stretch: &Stretch| {
        let body = leakscope_collect::encode(&stream, stretch).unwrap();
        place.post(&format!("{headers}Content-Length: {}\r\n", body.len()), &body)
    };
    let answer = post(&first);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"ticks\":50"), "{answer}");
    let before = all(&history_of(&place.state(), "web1"));
    let answer = post(&first);
    assert!(answer.contains("\"ticks\":0") && answer.contains("\"known\":50"), "{answer}");
    assert_eq!(all(&history_of(&place.state(), "web1")), before);
    // One that overlaps brings what is new of it.
    let answer = post(&history.stretch(0, 200).unwrap());
    assert!(answer.contains("\"ticks\":50") && answer.contains("\"known\":50"), "{answer}");
    // One that would leave a hole is answered with where to go on.
    let hole = history.stretch(first.upto + 1500, 10).unwrap();
    let answer = post(&hole);
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("\"position\":"), "{answer}");
    assert_eq!(place.push("web1", &path).drain().unwrap().ticks, 300);
    assert_eq!(all(&history_of(&place.state(), "web1")), all(&path));
}

#[test]
fn a_state_folder_that_was_lost_on_either_side() {
    let place = Place::new(8);
    let path = place.folder.path().join("history.sqlite");
    let start = start();
    write(&path, start, 30);
    let mut push = place.push("web1", &path);
    push.drain().unwrap();
    // The agent begins anew: its new history follows the old one.
    let second = place.folder.path().join("second.sqlite");
    write(&second, start + 290, 30);
    assert_eq!(place.push("web1", &second).drain().unwrap().ticks, 30);
    let history = History::open_read_only(&history_of(&place.state(), "web1")).unwrap();
    let times: Vec<u64> =
        history.rows("name:a", Scale::Raw, 0, u64::MAX >> 1).unwrap().iter().map(|row| row.at).collect();
    // The tick at which both were is there once.
    let expected: Vec<u64> = (0..59).map(|step| start + step * 10).collect();
    assert_eq!(times, expected);
}

#[test]
fn strangers_learn_nothing_and_leave_nothing() {
    let place = Place::new(8);
    let body = zstd::bulk::compress(b"{}", 3).unwrap();
    let length = format!("Content-Encoding: zstd\r\nContent-Length: {}\r\n", body.len());
    for authorization in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Bearer 0123456789abcdef-of-web\r\n",
        "Authorization: Bearer 0123456789abcdef-of-web11\r\n",
        "Authorization: Basic 0123456789abcdef-of-web1\r\n",
        "Authorization: 0123456789abcdef-of-web1\r\n",
    ] {
        let answer = place.post(&format!("{authorization}{length}"), &body);
        assert!(answer.starts_with("HTTP/1.1 401"), "{authorization:?}: {answer}");
        assert!(answer.ends_with("{\"error\":\"the token is missing or wrong\"}"), "{answer}");
    }
    let answer = place.raw(
        b"GET /v1/position?stream=00000000000000000000000000000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let mut push = place.push("web1", Path::new("/nonexistent"));
    assert!(matches!(push.step(), Err(CollectError::History(_))));
    assert!(machines(&place.state()).is_empty() && !place.state().join("machines").exists());
}

#[test]
fn bodies_that_lie() {
    let place = Place::new(8);
    let known = format!("Authorization: Bearer {TOKEN}\r\nContent-Encoding: zstd\r\n");
    let bomb = zstd::bulk::compress(&vec![b' '; 64 << 20], 19).unwrap();
    assert!(bomb.len() < 10_000, "{}", bomb.len());
    let answer = place.post(&format!("{known}Content-Length: {}\r\n", bomb.len()), &bomb);
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("more than 16777216 bytes"), "{answer}");
    let answer = place.post(&format!("{known}Content-Length: 99999999999\r\n"), b"x");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let long = vec![0u8; 3 << 20];
    let chunk = [format!("{:x}\r\n", long.len()).as_bytes(), &long, b"\r\n0\r\n\r\n"].concat();
    let answer = place.post(&format!("{known}Transfer-Encoding: chunked\r\n"), &chunk);
    // It may be closed before all of it is sent.
    assert!(answer.starts_with("HTTP/1.1 413") || answer.is_empty(), "{answer}");
    // Shorter than it says; cut within the frame; no frame at all; another kind.
    let good = zstd::bulk::compress(b"{}", 3).unwrap();
    let answer = place.answer(&request(&format!("{known}Content-Length: 1000\r\n"), &good), true);
    assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{answer}");
    for body in [&good[..good.len() - 2], b"{}", b"", &[0x28, 0xb5, 0x2f, 0xfd]] {
        let answer = place.post(&format!("{known}Content-Length: {}\r\n", body.len()), body);
        assert!(answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer}");
    }
    let plain = format!("Authorization: Bearer {TOKEN}\r\nContent-Length: 2\r\n");
    assert!(place.post(&plain, b"{}").starts_with("HTTP/1.1 415"));
    assert!(machines(&place.state()).is_empty());
}

/// A body with some of its words replaced.
fn body(replaced: &[(&str, &str)]) -> String {
    let mut text = format!(
        r#"{{"version":1,"stream":"{}","after":0,"upto":AT,"targets":["name:x"],"ticks":[[AT,[[0,0,[5]]]]],"events":[],"found":[]}}"#,
        "ab".repeat(16)
    );
    for (from, to) in replaced {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    text.replace("AT", &start().to_string())
}

#[test]
fn stretches_that_make_no_sense() {
    let place = Place::new(8);
    for (replaced, expected) in [
        (vec![("\"version\":1", "\"version\":2")], "version 2"),
        (vec![(&*"ab".repeat(16), "../../etc")], "32 hexadecimal digits"),
        (vec![("\"upto\":AT", "\"upto\":99999999999")], "set the clock"),
        (vec![("\"after\":0", "\"after\":99999999999")], "set the clock"),
        (vec![("[[0,0,", "[[7,0,")], "a sample of target 7, of which there are 1"),
        (vec![("[[0,0,[5]]]", "[[0,0,[5]],[0,0,[6]]]")], "twice in one tick"),
        (vec![("[[AT,", "[[AT,[]],[AT,")], "a tick at"),
        (vec![("[[AT,", "[[0,")], "a tick at 0"),
        (vec![("[5]", "[-5]")], "-5"),
        (vec![("[5]", "[1e99]")], "invalid type"),
        (vec![("[[0,0,", "[[0,70000,")], "70000"),
        (vec![("[\"name:x\"]", "[\"a\\u0001\",\"a\\u0002\"]")], "two targets are called"),
        (vec![("\"found\":[]", "\"found\":7")], "invalid type"),
    ] {
        let answer = place.post_text(&body(&replaced));
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(expected), "{replaced:?}: {answer}");
    }
    assert!(machines(&place.state()).is_empty());
    let deep = "[".repeat(1 << 20);
    assert!(place.post_text(&deep).starts_with("HTTP/1.1 400"));
    // What is unknown is left out, and what is not known stays unknown.
    let many = format!("[{}]", vec!["9"; METRICS + 5].join(","));
    let answer = place.post_text(&body(&[("[5]", &many)]));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let history = History::open_read_only(&history_of(&place.state(), "web1")).unwrap();
    assert_eq!(history.rows("name:x", Scale::Raw, 0, u64::MAX >> 1).unwrap()[0].values, [Some(9); METRICS]);
}

#[test]
fn names_that_turn_the_terminal_around() {
    let place = Place::new(8);
    let name = "name:\\u001b[31m\\u202eevil\\nx";
    let event = r#"{"at":AT,"target":"name:\u0000","kind":"\u0007","text":"a\u001b]0;x\u0007b"}"#;
    let answer = place.post_text(&body(&[("name:x", name), ("\"events\":[]", &format!("\"events\":[{event}]"))]));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (targets, events, _) = all(&history_of(&place.state(), "web1"));
    assert_eq!(targets[0].0, "name:\u{fffd}[31m\u{fffd}evil\u{fffd}x");
    assert!(!format!("{}{}{}", events[0].target, events[0].kind, events[0].text).contains(char::is_control));
}

#[test]
fn who_finds_no_place_is_told_when_to_come_back() {
    let place = Place::new(1);
    let head = |token: &str| {
        format!(
            "POST /v1/stretches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Encoding: zstd\r\nContent-Length: 9\r\n"
        )
    };
    // One whose body does not come holds the only place: `Expect` makes the server say when it has begun to read.
    let mut slow = TcpStream::connect(place.address).unwrap();
    slow.write_all(format!("{}Expect: 100-continue\r\n\r\n", head(TOKEN)).as_bytes()).unwrap();
    let mut answer = [0; 25];
    slow.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 100 Continue"), "{}", String::from_utf8_lossy(&answer));
    let answer = place.raw(format!("{}\r\n", head(TOKEN)).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after: 1\r\n"), "{answer}");
    let answer = place.raw(format!("{}\r\n", head("0123456789abcdef-of-web2")).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: "), "{answer}");
    // The agent hears the same.
    let path = place.folder.path().join("history.sqlite");
    write(&path, start(), 3);
    let mut push = place.push("web2", &path);
    match push.step().unwrap_err() {
        CollectError::Answer { status: 503, after_seconds: Some(1..=5), .. } => {}
        other => panic!("{other}"),
    }
    // When the slow one has gone, there is place: its answer comes when its turn is over.
    slow.shutdown(Shutdown::Write).unwrap();
    let _ = slow.read_to_end(&mut Vec::new());
    assert_eq!(push.drain().unwrap().ticks, 3);
}

fn openssl(folder: &Path, words: &str) {
    let output = Command::new("openssl").args(words.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "openssl {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Over TLS, with a certificate authority of one's own as people make it: who does not know it sends nothing, no token either.
#[test]
fn over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, subject) in [("ca", "/CN=ours"), ("other", "/CN=theirs")] {
        let files = format!("-keyout {name}.key -out {name}.pem -subj {subject}");
        openssl(folder.path(), &format!("req -x509 -newkey rsa:2048 -nodes -days 2 {files}"));
    }
    openssl(folder.path(), "req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=localhost");
    std::fs::write(at("names"), "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n").unwrap();
    let signed =
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem";
    openssl(folder.path(), signed);
    let (ca, other, history) = (at("ca.pem"), at("other.pem"), at("history.sqlite"));
    write(&history, start(), 50);
    let tls = Some((at("cert.pem"), at("key.pem")));
    let place = Place::with(folder, 4, tls);
    let url = format!("https://localhost:{}/", place.address.port());
    let fails = |url: &str, ca_file| {
        let error = place.push_to(url, "web1", &history, ca_file).drain().unwrap_err();
        println!("{error}");
        assert!(matches!(error, CollectError::Unreachable { .. }), "{error:?}");
    };
    fails(&url, None);
    fails(&url, Some(other));
    // The certificate is for another name.
    fails(&format!("https://{}/", place.address), Some(ca.clone()));
    fails(&format!("http://{}/", place.address), Some(ca.clone()));
    assert!(machines(&place.state()).is_empty());
    let pushed = place.push_to(&url, "web1", &history, Some(ca)).drain().unwrap();
    assert_eq!(pushed.ticks, 50);
    assert_eq!(all(&history_of(&place.state(), "web1")), all(&history));
}
