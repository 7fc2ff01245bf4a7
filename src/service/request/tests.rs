use super::*;
use std::error::Error;

fn error_text(verb: &str, body: &[u8]) -> String {
    let error = Request::from_json(verb, body).unwrap_err();
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

#[test]
fn requests_survive_json() {
    let name = ImageName::new("web").unwrap();
    let requests = [
        Request::Create(Create {
            name: name.clone(),
            size_bytes: Bytes(1 << 30),
            fs: MakeFs::Xfs,
            limit_bytes: Some(Bytes(64 << 20)),
            reserve: true,
        }),
        Request::Mount(Mount {
            name: name.clone(),
            dir: Some("/mnt".into()),
            read_only: true,
            mode: Some(Mode::Stack),
            limit_bytes: None,
            reserve: false,
        }),
        Request::List(List {}),
        Request::Resize(Resize {
            name: name.clone(),
            size: Some(NewSize::MinusBytes(Bytes(5 << 30))),
            limit_bytes: Some(Bytes(1 << 30)),
            no_limit: false,
            reserve: Some(false),
            shrink: true,
        }),
        Request::Check(Check {
            name: Some(name),
            rebuild: false,
            repair: true,
        }),
        Request::Pull(Pull {
            link: "magnet:?xt=x".into(),
            name: None,
            bootstrap: vec!["a:1".into()],
            timeout_ms: Some(5),
            insecure_sha1: true,
        }),
    ];
    for request in requests {
        assert_eq!(Request::from_json(request.verb(), &request.to_json().unwrap()).unwrap(), request);
    }
}

#[test]
fn bad_arguments_are_named() {
    for (verb, body, want) in [
        ("info", r#"{"name":"../x"}"#, "image name \"../x\""),
        ("info", r#"{"name":""}"#, "it is empty"),
        ("info", r#"{"name":"a\u0000b"}"#, "control characters"),
        ("info", r#"{"name":"x","nmae":"y"}"#, "unknown field `nmae`"),
        ("info", r#"{"name":"x","name":"y"}"#, "duplicate field `name`"),
        ("info", r#"{}"#, "missing field `name`"),
        ("info", "", "EOF"),
        ("info", "{\"name\":\"x\"}trailing", "trailing characters"),
        ("list", r#"{"name":"x"}"#, "unknown field `name`"),
        ("create", r#"{"name":"x","size_bytes":1}"#, "multiple of 512"),
        ("create", r#"{"name":"x","size_bytes":-1}"#, "invalid value"),
        ("create", r#"{"name":"x","size_bytes":512,"fs":"ntfs"}"#, "want ext4, xfs or none"),
        ("attach", r#"{"name":"x","mode":"Flat"}"#, "mode \"Flat\": want flat, stack or user"),
        ("import", r#"{"name":"x","source":"etc"}"#, "source \"etc\" is not absolute"),
        ("mount", r#"{"name":"x","dir":"mnt"}"#, "is not absolute"),
        ("resize", r#"{"name":"x"}"#, "want a size, a limit"),
        ("resize", r#"{"name":"x","limit_bytes":65536,"no_limit":true}"#, "a limit, and none"),
        (
            "resize",
            r#"{"name":"x","size":{"times_bytes":2}}"#,
            "unknown variant `times_bytes`",
        ),
        ("clone", r#"{"source":"x","target":"x"}"#, "same image"),
        ("fly", "{}", "no verb \"fly\"; there are create, import"),
    ] {
        let text = error_text(verb, body.as_bytes());
        assert!(text.contains(want), "{verb} {body}: {text}");
    }
}

#[test]
fn deep_nesting_is_an_error_not_a_stack_overflow() {
    let body = "[".repeat(1 << 20);
    assert!(Request::from_json("info", body.as_bytes()).is_err());
    let body = format!("{{\"x\":{body}");
    assert!(Request::from_json("info", body.as_bytes()).is_err());
}

proptest::proptest! {
    #[test]
    fn any_bytes_parse_or_fail(body: Vec<u8>, verb in 0..Request::VERBS.len()) {
        let _ = Request::from_json(Request::VERBS[verb], &body);
    }
}

#[test]
fn a_new_size_is_read_as_qemu_img_reads_it() {
    let ten = Bytes(10 << 30);
    for (text, want) in [("20G", 20), ("+5G", 15), ("-5G", 5), ("+0", 10), ("-0", 10)] {
        assert_eq!(NewSize::parse(text).unwrap().of(ten).unwrap(), Bytes(want << 30), "{text}");
    }
    for text in ["", "+", "-", "--5G", "+-5G", "5", "1000", "17T", "5G-"] {
        assert!(NewSize::parse(text).is_err(), "{text}");
    }
    for text in ["-10G", "-11G", "+16T", "+1", "-1"] {
        assert!(NewSize::parse(text).unwrap().of(ten).is_err(), "{text}");
    }
}
