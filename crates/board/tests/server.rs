//! The server as its clients see it: curl, promtool, and a receiver of OTLP made of the official protocol definitions.

mod made;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use leakscope_board::{
    MachineView, PageError, PageOptions, Refused, Server, Shared, Verdict, otlp, prometheus, serve, serve_many,
};
use made::{HOSTILE, board, history};

fn options(listen: &str) -> PageOptions {
    PageOptions { listen: listen.parse().unwrap(), token: None, tls: None, behind_proxy: false }
}

fn start(options: &PageOptions, folder: &Path) -> Server {
    let path = folder.join("history.sqlite");
    history(&path);
    let shared = Shared::default();
    shared.publish(board());
    serve(options, shared, path).unwrap()
}

/// An answer to bytes that are sent as they are.
fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: SocketAddr, path: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn everything_can_be_read_and_nothing_changed() {
    let folder = tempfile::tempdir().unwrap();
    let address = start(&options("127.0.0.1:0"), folder.path()).address;
    for path in ["/", "/main.js", "/main.css", "/icon.svg", "/api/board", "/api/found", "/metrics"] {
        let answer = get(address, path);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        let headers = answer.split_once("\r\n\r\n").unwrap().0.to_lowercase();
        for expected in ["content-security-policy: default-src 'none'", "nosniff", "x-frame-options: deny", "no-store"]
        {
            assert!(headers.contains(expected), "{path}: no {expected} in {headers}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            assert!(raw(address, &request).starts_with("HTTP/1.1 405 "), "{method} {path}");
        }
    }
    for path in ["/../../etc/passwd", "/api", "/api/board/x", "/history.sqlite", "/api/machines"] {
        assert!(get(address, path).starts_with("HTTP/1.1 404 "), "{path}");
    }
    assert!(get(address, "/api/series").starts_with("HTTP/1.1 400 "));
    let page = get(address, "/");
    assert!(!page.contains("http://") && !page.contains("https://"), "the page needs no other server");
}

#[test]
fn the_board_and_a_series_are_what_was_published() {
    let folder = tempfile::tempdir().unwrap();
    let address = start(&options("127.0.0.1:0"), folder.path()).address;
    let answer = get(address, "/api/board");
    let value: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
    let (made, found) = (board(), value["targets"].as_array().unwrap());
    assert_eq!(found.len(), made.targets.len());
    assert_eq!((found[2]["id"].as_str(), found[0]["verdict"].as_str()), (Some(HOSTILE), Some("growing")));
    assert_eq!(value["alarms"][0]["evidence"][0]["fingerprint"], "0123456789abcdef");
    let tag = answer.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let request =
        format!("GET /api/board HTTP/1.1\r\nHost: [::1]:1\r\nIf-None-Match: {tag}\r\nConnection: close\r\n\r\n");
    assert!(raw(address, &request).starts_with("HTTP/1.1 304 "));
    let series = get(address, "/api/series?target=name%3Ashop&seconds=86400");
    let series: serde_json::Value = serde_json::from_str(body(&series)).unwrap();
    let at = series["at"].as_array().unwrap();
    assert!((285..=290).contains(&at.len()), "a day in steps of five minutes: {}", at.len());
    assert_eq!(series["values"]["threads"].as_array().unwrap()[3], 12);
    assert!(series["values"]["proportional"].is_null(), "what is unknown is left out");
    assert_eq!(series["events"][0]["kind"], "alarm");
    let short = get(address, "/api/series?target=name%3Ashop&seconds=7200");
    let short: serde_json::Value = serde_json::from_str(body(&short)).unwrap();
    assert!((119..=121).contains(&short["at"].as_array().unwrap().len()), "two hours as they were taken");
    let nobody: serde_json::Value =
        serde_json::from_str(body(&get(address, "/api/series?target='%22%3B--&seconds=99999999999"))).unwrap();
    assert_eq!(nobody["at"], serde_json::json!([]));
    let found: serde_json::Value = serde_json::from_str(body(&get(address, "/api/found?target=name:shop"))).unwrap();
    assert_eq!(found["found"].as_array().unwrap().len(), 2);
    assert_eq!(found["found"][0]["stack"][1], "load_page (cache.c:12)");
}

#[test]
fn of_many_machines_each_has_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options("127.0.0.1:0");
    let fleet = || std::sync::Arc::new(made::Fleet::new(tempfile::tempdir_in(folder.path()).unwrap().keep().as_path()));
    let address = serve_many(&options, fleet()).unwrap().address;
    let json = |path: &str| -> serde_json::Value { serde_json::from_str(body(&get(address, path))).unwrap() };
    let all = json("/api/machines");
    let names: Vec<&str> =
        all["machines"].as_array().unwrap().iter().map(|one| one["machine"].as_str().unwrap()).collect();
    assert_eq!(names, ["db-1", "web-1", "old-1"]);
    // The most urgent one: what grows, else what is largest.
    let first = |at: usize| all["machines"][at]["first"]["id"].clone();
    assert_eq!(
        (first(0), first(1), first(2)),
        ("unit:postgresql.service".into(), "name:shop".into(), serde_json::Value::Null)
    );
    assert_eq!((&all["machines"][1]["alarms"], &all["machines"][1]["targets"][2][0]), (&1.into(), &HOSTILE.into()));
    assert!(get(address, "/").contains("<html data-many lang="));
    assert_eq!(json("/api/board?machine=web-1")["targets"].as_array().unwrap().len(), board().targets.len());
    assert_eq!(json("/api/board?machine=db-1")["machine"], "db-1");
    let series = json("/api/series?target=name:shop&seconds=86400&machine=web-1");
    assert!((285..=290).contains(&series["at"].as_array().unwrap().len()));
    assert_eq!(json("/api/found?target=name:shop&machine=web-1")["found"].as_array().unwrap().len(), 2);
    assert_eq!(json("/api/profiles?target=name:shop&machine=web-1")["sources"]["ledger"].as_array().unwrap().len(), 3);
    for path in ["board", "series?target=name:shop&seconds=60", "found?target=x", "profiles?target=x"] {
        for machine in ["", "machine=nobody", "machine=..%2F..%2Fetc", "machine=old-1"] {
            let path = format!("/api/{path}{}{machine}", if path.contains('?') { '&' } else { '?' });
            assert!(get(address, &path).starts_with("HTTP/1.1 404 "), "{path}");
        }
    }
    let metrics = get(address, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 ") && metrics.contains("leakscope_machine_targets{"), "{metrics}");
    assert!(!metrics.contains("leakscope_target_"), "each machine's own monitor has those: {metrics}");
    // The rules of one machine's page: names that are ours, and the token.
    let evil = raw(address, "GET /api/machines HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(evil.starts_with("HTTP/1.1 421 "), "{evil}");
    options.token = Some("t0ken".into());
    let address = serve_many(&options, fleet()).unwrap().address;
    assert!(get(address, "/api/machines").starts_with("HTTP/1.1 401 "));
    let request =
        "GET /api/machines HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t0ken\r\nConnection: close\r\n\r\n";
    assert!(raw(address, request).starts_with("HTTP/1.1 200 "));
    options.listen = "0.0.0.0:0".parse().unwrap();
    assert!(matches!(serve_many(&options, fleet()), Err(PageError::Refused { reason: Refused::NoTls, .. })));
}

#[test]
fn others_are_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let address = start(&options("127.0.0.1:0"), folder.path()).address;
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example"] {
        let answer = raw(address, &format!("GET /api/board HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 421 ") && !answer.contains("name:shop"), "{host}: {answer}");
    }
    let refused = |listen: &str, change: fn(&mut PageOptions)| {
        let mut options = options(listen);
        change(&mut options);
        match serve(&options, Shared::default(), PathBuf::from("/nonexistent")) {
            Err(PageError::Refused { reason, .. }) => Some(reason),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused("0.0.0.0:0", |_| ()), Some(Refused::NoToken));
    assert_eq!(refused("0.0.0.0:0", |options| options.token = Some("t".into())), Some(Refused::NoTls));
    assert_eq!(refused("127.0.0.1:0", |options| options.behind_proxy = true), Some(Refused::NoToken));
    let taken = serve(&options(&address.to_string()), Shared::default(), PathBuf::new()).unwrap_err().to_string();
    assert!(taken.contains("cannot listen there") && taken.contains("another port"), "{taken}");
}

#[test]
fn beyond_loopback_with_token_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-keyout"])
        .arg(at("key.pem"))
        .arg("-out")
        .arg(at("cert.pem"))
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let mut options = options("0.0.0.0:0");
    options.token = Some("t0ken".into());
    options.tls = Some((at("cert.pem"), at("key.pem")));
    let server = start(&options, folder.path());
    assert!(server.is_tls);
    // The oracle is curl, with OpenSSL or GnuTLS.
    let curl = |more: &[&str]| {
        let url = format!("https://localhost:{}/api/board", server.address.port());
        let mut command = Command::new("curl");
        command
            .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "30", "--cacert"])
            .arg(at("cert.pem"));
        let output = command.args(more).arg(url).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(curl(&[]), "401");
    assert_eq!(curl(&["-H", "Authorization: Bearer t0ken"]), "200");
    assert_eq!(curl(&["-u", "ops:t0ken"]), "200");
    assert_eq!(curl(&["-u", "ops:wrong"]), "401");
    assert_eq!(curl(&["-X", "POST", "-u", "ops:t0ken"]), "405");
    // Who does not speak TLS gets nothing, and does not keep others from it.
    let mut silent = TcpStream::connect(("127.0.0.1", server.address.port())).unwrap();
    silent.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = silent.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let _open: Vec<TcpStream> =
        (0..8).map(|_| TcpStream::connect(("127.0.0.1", server.address.port())).unwrap()).collect();
    assert_eq!(curl(&["-u", "ops:t0ken"]), "200");
    options.tls = Some((at("key.pem"), at("nothing.pem")));
    let error = serve(&options, Shared::default(), PathBuf::new()).unwrap_err().to_string();
    assert!(error.contains("nothing.pem") && error.contains("PEM"), "{error}");
}

#[test]
fn metrics_keep_prometheus_conventions() {
    let text = prometheus::text(&board(), &mut prometheus::Exported::default());
    assert!(text.contains("leakscope_target_memory_bytes{target=\"name:shop\"} 1440000000\n"), "{text}");
    assert!(text.contains("leakscope_target_growth_bytes_per_second{target=\"name:shop\"} 16666.666"));
    assert!(text.contains("onerror=\\\"pwned=1\\\">\\\\\\\"&"), "quotes and backslashes of names are escaped");
    let labels = text.lines().filter(|line| !line.starts_with('#') && line.contains('{'));
    for line in labels {
        let name = line.split_once('{').unwrap().1.split_once('=').unwrap().0;
        assert!(matches!(name, "target" | "version"), "{line}");
    }
    // Parts are a second label of few words, and stand together behind one head.
    let parts: Vec<&str> = text.lines().filter(|line| line.starts_with("leakscope_target_part_bytes{")).collect();
    let expected = [
        "leakscope_target_part_bytes{target=\"name:shop\",part=\"heap\"} 1152000000",
        "leakscope_target_part_bytes{target=\"name:shop\",part=\"mapped_files\"} 288000000",
    ];
    assert_eq!((parts.as_slice(), text.matches("# TYPE leakscope_target_part_bytes ").count()), (&expected[..], 1));
    assert!(text.contains("leakscope_target_arena_regions{target=\"name:shop\"} 3\n"), "{text}");
    check_metrics(&text);
}

/// Prometheus' own checker has nothing to say.
fn check_metrics(text: &str) {
    if !Path::new("/usr/bin/promtool").exists() {
        eprintln!("left out: promtool is not installed; cargo xtask setup installs it");
        return;
    }
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && words.trim().is_empty(), "{words}");
}

#[test]
fn a_collectors_metrics_keep_them_too() {
    let told = MachineView::of(&board(), 1_795_400_000);
    // Nothing is known of the second but that it was heard of.
    let silent = MachineView {
        machine: "web\"2".to_owned(),
        seen: 1_795_300_000,
        interval_seconds: None,
        alarms: 0,
        targets: Vec::new(),
        first: None,
    };
    let growing = told.targets.iter().filter(|(_, verdict)| *verdict == Verdict::Growing).count();
    let left = told.first.as_ref().unwrap().hours_left.unwrap();
    let (name, targets) = (told.machine.clone(), told.targets.len());
    let text = prometheus::text_of_machines(&[told, silent]);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("leakscope_machine")).collect();
    let expected = [
        format!("leakscope_machine_last_heard_timestamp_seconds{{machine=\"{name}\"}} 1795400000"),
        "leakscope_machine_last_heard_timestamp_seconds{machine=\"web\\\"2\"} 1795300000".to_owned(),
        format!("leakscope_machine_interval_seconds{{machine=\"{name}\"}} 10"),
        format!("leakscope_machine_open_alarms{{machine=\"{name}\"}} 1"),
        "leakscope_machine_open_alarms{machine=\"web\\\"2\"} 0".to_owned(),
        format!("leakscope_machine_targets{{machine=\"{name}\"}} {targets}"),
        "leakscope_machine_targets{machine=\"web\\\"2\"} 0".to_owned(),
        format!("leakscope_machine_growing_targets{{machine=\"{name}\"}} {growing}"),
        "leakscope_machine_growing_targets{machine=\"web\\\"2\"} 0".to_owned(),
        format!("leakscope_machine_until_limit_seconds{{machine=\"{name}\"}} {}", left * 3600.0),
    ];
    assert!(growing > 0);
    assert_eq!(lines, expected);
    check_metrics(&text);
    check_metrics(&prometheus::text_of_machines(&[]));
}

#[test]
fn names_that_come_and_go_do_not_fill_prometheus() {
    let mut exported = prometheus::Exported::default();
    let mut board = board();
    let mut names = std::collections::BTreeSet::new();
    let one = board.targets.remove(0);
    for round in 0..30 {
        board.targets = (0..100)
            .map(|number| leakscope_board::TargetView { id: format!("name:{round}-{number}"), ..one.clone() })
            .collect();
        let text = prometheus::text(&board, &mut exported);
        names.extend(text.split("target=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
        let left_out = if round < 10 { 0 } else { 100 };
        assert!(text.contains(&format!("\nleakscope_targets_not_exported {left_out}\n")), "round {round}");
    }
    assert_eq!(names.len(), prometheus::MOST_NAMES);
}

/// Decodes what is pushed with the official definitions (the package opentelemetry-proto), and says what it understood.
const RECEIVER: &str = r#"
import http.server, json, sys
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service
from google.protobuf import unknown_fields
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = service.ExportMetricsServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers['Content-Length'])))
        resource = request.resource_metrics[0]
        metrics = {}
        for metric in resource.scope_metrics[0].metrics:
            kind = metric.WhichOneof('data')
            data = getattr(metric, kind)
            points = {'/'.join(a.value.string_value for a in p.attributes): p.as_double for p in data.data_points}
            first = data.data_points[0]
            metrics[metric.name] = {'kind': kind, 'unit': metric.unit, 'points': points, 'at': first.time_unix_nano,
                'start': first.start_time_unix_nano,
                'sum': [data.aggregation_temporality, data.is_monotonic] if kind == 'sum' else None}
        unknown = len(unknown_fields.UnknownFieldSet(request))
        print(json.dumps({'path': self.path, 'type': self.headers['Content-Type'], 'token': self.headers['Authorization'],
            'resource': {a.key: a.value.string_value for a in resource.resource.attributes}, 'metrics': metrics,
            'unknown': unknown}), flush=True)
        self.send_response(503 if self.path.startswith('/busy') else 200); self.send_header('Content-Length', '0'); self.end_headers()
    def log_message(self, *words): pass
server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// A Python that has the definitions: that of `cargo xtask setup`, or the system's.
fn python() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let own = std::env::var_os("LEAKSCOPE_PYTHON").map(PathBuf::from);
    let candidates = [own, Some(root.join("target/python/bin/python3")), Some("python3".into())];
    candidates.into_iter().flatten().find(|python| {
        let script = "import opentelemetry.proto.collector.metrics.v1.metrics_service_pb2";
        Command::new(python).args(["-c", script]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })
}

#[test]
fn a_receiver_of_otlp_understands_all_of_it() {
    let Some(python) = python() else {
        eprintln!("left out: the package opentelemetry-proto is not installed; cargo xtask setup installs it");
        return;
    };
    let mut child = Command::new(python).args(["-c", RECEIVER]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let port = lines.next().unwrap().unwrap();
    let board = board();
    let body = otlp::encode(&board, 1_700_000_000);
    otlp::push(&format!("http://127.0.0.1:{port}/v1/metrics"), Some("t0ken"), &body).unwrap();
    let got: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    let refused = otlp::push(&format!("http://127.0.0.1:{port}/busy?token=t0ken"), None, &body);
    let gone = otlp::push("http://127.0.0.1:1/v1/metrics", None, &body).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((&got["path"], &got["type"]), (&"/v1/metrics".into(), &"application/x-protobuf".into()));
    assert_eq!((&got["token"], &got["unknown"]), (&"Bearer t0ken".into(), &0.into()));
    assert_eq!(got["resource"]["host.name"], "web-1");
    let memory = &got["metrics"]["leakscope.target.memory"];
    assert_eq!((&memory["kind"], &memory["unit"]), (&"gauge".into(), &"By".into()));
    assert_eq!(memory["at"], board.at * 1_000_000_000);
    for target in &board.targets {
        assert_eq!(memory["points"][&target.id].as_f64(), target.memory, "{}", target.id);
    }
    let parts = &got["metrics"]["leakscope.target.part"]["points"];
    assert_eq!((parts["name:shop/heap"].as_f64(), parts.as_object().unwrap().len()), (Some(1.152e9), 2));
    let restarts = &got["metrics"]["leakscope.target.restarts"];
    assert_eq!((&restarts["kind"], &restarts["sum"]), (&"sum".into(), &serde_json::json!([2, true])));
    assert_eq!(restarts["start"], 1_700_000_000_000_000_000u64);
    assert_eq!(got["metrics"]["leakscope.monitor.passes"]["points"][""], 8640.0);
    let refused = refused.unwrap_err();
    assert!(refused.contains("503") && !refused.contains("t0ken"), "{refused}");
    assert!(gone.contains("127.0.0.1:1"), "{gone}");
}
