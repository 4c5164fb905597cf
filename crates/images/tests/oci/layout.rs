//! Layouts: right ones become images, wrong ones an error that says what is wrong.

use std::fs;
use std::path::Path;
use std::process::Command;

use images::Limits;
use images::oci::Config;
use serde_json::{Value, json};

use crate::support::*;

fn unpack(image: &Path, into: &Path) {
    let output = Command::new("unsquashfs").args(["-no-progress", "-d"]).args([into, image]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn layers_and_whiteouts_make_one_tree() {
    if !unsquashfs("layers_and_whiteouts_make_one_tree") {
        return;
    }
    let made = Made::new();
    let lower = tar(&[("etc/", ""), ("etc/passwd", "root"), ("etc/gone", "x"), ("old/", ""), ("old/a", "a")]);
    let middle = tar(&[("etc/.wh.gone", ""), ("old/b", "b"), ("old/.wh..wh..opq", "")]);
    let upper = tar(&[("etc/passwd", "replaced"), ("app/main", "code")]);
    let image = made.image(&[(GZIP, lower), (ZSTD, middle), (TAR, upper)]);
    made.index(&[tagged(image.clone(), "1.0")]);

    let out = tempfile::tempdir().unwrap();
    let (first, second) = (out.path().join("a"), out.path().join("b"));
    let built = made.build(":1.0", &first, Limits::default()).unwrap();
    assert_eq!(made.build("", &second, Limits::default()).unwrap(), built);
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    assert_eq!(built.container.unwrap().digest, image["digest"].as_str().unwrap());

    let back = out.path().join("back");
    unpack(&first, &back);
    let read = |path: &str| fs::read_to_string(back.join(path)).ok();
    assert_eq!(read("etc/passwd").unwrap(), "replaced");
    assert_eq!(read("app/main").unwrap(), "code");
    assert_eq!(read("old/b").unwrap(), "b");
    assert_eq!((read("etc/gone"), read("old/a"), read("etc/.wh.gone")), (None, None, None));
    assert!(back.join("var/task").is_dir());
}

#[test]
fn compression_is_no_input() {
    let out = tempfile::tempdir().unwrap();
    let hashes = [TAR, GZIP, ZSTD].map(|media| {
        let made = Made::new();
        let image = made.image(&[(media, tar(&[("hello", "world")]))]);
        made.index(&[image]);
        made.build("", &out.path().join("image"), Limits::default()).unwrap().sha256
    });
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(hashes[0], hashes[2]);
}

#[test]
fn the_configuration_comes_along() {
    let made = Made::new();
    let tar = tar(&[("hello", "world")]);
    let mut config = json!({ "os": "linux", "architecture": architecture(),
        "rootfs": { "type": "layers", "diff_ids": [digest(&tar)] },
        "config": { "Entrypoint": ["/lambda-entrypoint.sh"], "Cmd": ["app.handler"], "WorkingDir": "/var/task",
                    "Env": ["PATH=/usr/bin:/bin", "EMPTY=", "A=b=c"], "Labels": null } });
    let layers = [(TAR, tar)];
    made.index(&[made.image_with(&layers, &config)]);
    let out = tempfile::tempdir().unwrap();
    let built = made.build("", &out.path().join("image"), Limits::default()).unwrap();
    let expected = Config {
        entrypoint: vec!["/lambda-entrypoint.sh".into()],
        command: vec!["app.handler".into()],
        environment: [("PATH", "/usr/bin:/bin"), ("EMPTY", ""), ("A", "b=c")].map(|(k, v)| (k.into(), v.into())).into(),
        working_directory: Some("/var/task".into()),
    };
    assert_eq!(built.container.unwrap().config, expected);

    for (wrong, reason) in [("nothing", "not NAME=VALUE"), ("=x", "not NAME=VALUE"), ("A=\0", "zero byte")] {
        config["config"]["Env"] = json!([wrong]);
        made.index(&[made.image_with(&layers, &config)]);
        assert!(made.refused("").contains(reason), "{wrong:?}");
    }
    config["config"] = Value::Null;
    made.index(&[made.image_with(&layers, &config)]);
    let built = made.build("", &out.path().join("image"), Limits::default()).unwrap();
    assert_eq!(built.container.unwrap().config, Config::default());
}

#[test]
fn the_image_for_this_machine_is_taken() {
    let made = Made::new();
    let image = made.image(&[(TAR, tar(&[("mine", "x")]))]);
    let other = made.image(&[(TAR, tar(&[("other", "x")]))]);
    let entries = [
        platform(other.clone(), "linux", "s390x"),
        platform(other.clone(), "windows", architecture()),
        with(other.clone(), "mediaType", json!("application/vnd.example+json")),
        platform(image.clone(), "linux", architecture()),
        platform(other.clone(), "unknown", "unknown"),
    ];
    let nested = made.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }));
    made.index(&[tagged(nested.clone(), "latest"), tagged(other.clone(), "other")]);
    let out = tempfile::tempdir().unwrap();
    let digest = |suffix: &str| {
        let built = made.build(suffix, &out.path().join("image"), Limits::default()).unwrap();
        built.container.unwrap().digest
    };
    let name = |descriptor: &Value| descriptor["digest"].as_str().unwrap().to_owned();
    assert_eq!(digest(":latest"), name(&image));
    assert_eq!(digest(&format!("@{}", name(&nested))), name(&image));
    assert_eq!(digest(":other"), name(&other));

    let several = made.refused("");
    assert!(several.contains("several images; add :TAG (there is: latest, other)"), "{several}");
    let unknown = made.refused(":1.0");
    assert!(unknown.contains("no tag \"1.0\"; its tags are: latest, other"), "{unknown}");
    let unknown = made.refused(&format!("@{}", name(&image)));
    assert!(unknown.contains(&name(&nested)) && unknown.contains("its digests are"), "{unknown}");

    made.index(&[platform(image.clone(), "linux", "s390x"), platform(image, "plan9", architecture())]);
    let none = made.refused("");
    let expected = format!("which is linux/{}; there is: linux/s390x, plan9/{0}", architecture());
    assert!(none.contains(&expected), "{none}");
}

#[test]
fn an_image_of_another_machine_is_none() {
    let made = Made::new();
    let tar = tar(&[("hello", "world")]);
    let config =
        json!({ "os": "linux", "architecture": "s390x", "rootfs": { "type": "layers", "diff_ids": [digest(&tar)] } });
    // The index lies.
    made.index(&[platform(made.image_with(&[(TAR, tar)], &config), "linux", architecture())]);
    let error = made.refused("");
    assert!(error.contains(&format!("for linux/s390x, and this machine is linux/{}", architecture())), "{error}");
}

#[test]
fn what_is_no_layout_is_none() {
    let made = Made::simple();
    fs::write(made.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(made.refused("").contains("version \"2.0.0\", not 1"));
    fs::remove_file(made.path().join("oci-layout")).unwrap();
    assert!(made.refused("").contains("oci-layout and index.json"));
    let made = Made::simple();
    fs::write(made.path().join("index.json"), "[").unwrap();
    assert!(made.refused("").contains("index.json: it is not what OCI's image specification describes"));
    fs::write(made.path().join("index.json"), vec![b' '; 4 * 1024 * 1024 + 1]).unwrap();
    assert!(made.refused("").contains("index.json is larger than 4194304 bytes"));
    fs::remove_file(made.path().join("index.json")).unwrap();
    // Nobody writes into it: opening it must not wait.
    let pipe = Command::new("mkfifo").arg(made.path().join("index.json")).status().unwrap();
    assert!(pipe.success());
    assert!(made.refused("").contains("it is no file"));
}

#[test]
fn every_blob_is_checked() {
    let parts = |made: &Made| {
        let index: Value = serde_json::from_slice(&fs::read(made.path().join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0].clone();
        let inner: Value = serde_json::from_slice(&fs::read(made.file(&manifest)).unwrap()).unwrap();
        [manifest, inner["config"].clone(), inner["layers"][0].clone()].map(|descriptor| {
            let digest = descriptor["digest"].as_str().unwrap().to_owned();
            (digest, made.file(&descriptor))
        })
    };
    for part in 0..3 {
        let made = Made::simple();
        let (digest, file) = parts(&made)[part].clone();
        let bytes = fs::read(&file).unwrap();

        let mut wrong = bytes.clone();
        *wrong.last_mut().unwrap() ^= 1;
        fs::write(&file, wrong).unwrap();
        let error = made.refused("");
        assert!(error.contains(&digest) && error.contains("is damaged: its digest is sha256:"), "{part}: {error}");

        fs::write(&file, [&bytes[..], b"x"].concat()).unwrap();
        let error = made.refused("");
        let sizes = format!("has {} bytes, and should have {}", bytes.len() + 1, bytes.len());
        assert!(error.contains(&digest) && error.contains(&sizes), "{part}: {error}");

        fs::remove_file(&file).unwrap();
        let error = made.refused("");
        assert!(error.contains(&digest) && error.contains("it is not in"), "{part}: {error}");

        fs::create_dir(&file).unwrap();
        assert!(made.refused("").contains("it is no file"), "{part}");
    }
}

#[test]
fn nothing_is_larger_than_the_limits() {
    let made = Made::new();
    let bomb = tar(&[("zeros", &"\0".repeat(2_000_000))]);
    let small = Limits { unpacked: 1_000_000, ..Limits::default() };
    for (media, name) in [(TAR, "layer 1 sha256"), (GZIP, "layer 1 sha256"), (ZSTD, "layer 1 sha256")] {
        made.index(&[made.image(&[(media, bomb.clone())])]);
        let error = made.refused_within("", small);
        assert!(error.contains(name) && error.contains("larger than"), "{error}");
        assert!(made.build("", &made.path().join("image"), Limits::default()).is_ok());
    }
    // Two that fit, and do not together.
    let half = tar(&[("zeros", &"\0".repeat(600_000))]);
    made.index(&[made.image(&[(GZIP, half.clone()), (GZIP, half)])]);
    assert!(made.refused_within("", small).contains("larger than 1000000 bytes"));

    let manifest = made.blob(MANIFEST, &vec![b' '; 5_000_000]);
    made.index(&[manifest]);
    assert!(made.refused("").contains("larger than 4194304 bytes"));
    let made = Made::simple();
    made.index(&[with(made.image(&[]), "size", json!(u64::MAX))]);
    assert!(made.refused("").contains("larger than 4194304 bytes"));
}

#[test]
fn digests_lead_nowhere_else() {
    let made = Made::simple();
    let image = made.image(&[]);
    let digits = "a".repeat(64);
    for digest in [
        "sha256:../../../../etc/passwd".to_owned(),
        format!("sha256:{}", "../".repeat(21) + "a"),
        format!("../sha256:{digits}"),
        format!("sha256/../..:{digits}"),
        format!("sha256:{}", "A".repeat(64)),
        format!("sha256:{}", &digits[1..]),
        "sha256".to_owned(),
        String::new(),
    ] {
        made.index(&[with(image.clone(), "digest", json!(digest))]);
        let error = made.refused("");
        assert!(error.contains("index.json: it is not what OCI's image specification describes"), "{digest}: {error}");
    }
    for (digest, algorithm) in [(format!("sha512:{}", "a".repeat(128)), "sha512"), (format!("x:{digits}"), "x")] {
        made.index(&[with(image.clone(), "digest", json!(digest))]);
        let error = made.refused("");
        assert!(error.contains(&format!("digests by {algorithm} are not supported, only sha256")), "{error}");
    }
}

#[test]
fn indexes_do_not_nest_for_ever() {
    let made = Made::new();
    let mut at = made.image(&[(TAR, tar(&[("deep", "x")]))]);
    let nest = |at: Value| made.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [at] }));
    for _ in 0..7 {
        at = nest(at);
    }
    made.index(std::slice::from_ref(&at));
    assert!(made.build("", &made.path().join("image"), Limits::default()).is_ok());
    made.index(&[nest(at)]);
    assert!(made.refused("").contains("indexes in indexes, more than 8 deep"));
    made.index(&[]);
    assert!(made.refused("").contains("there is: nothing"));
}

#[test]
fn types_are_known_and_the_same_everywhere() {
    let made = Made::new();
    let tar = tar(&[("hello", "world")]);
    let image = made.image(&[(TAR, tar.clone())]);
    let unknown = "application/vnd.example.model.v1";
    made.index(&[with(image.clone(), "mediaType", json!(unknown))]);
    let error = made.refused("");
    assert!(error.contains("no image for this machine") && error.contains(unknown), "{error}");

    for media in [unknown, "application/vnd.oci.image.layer.nondistributable.v1.tar", "\u{1b}[2J"] {
        made.index(&[made.image(&[(media, tar.clone())])]);
        let error = made.refused("");
        assert!(error.contains(&format!("layers of the type {media:?} are not supported")), "{error}");
        assert!(error.contains("layer 1 sha256:"), "{error}");
    }

    made.index(&[made.manifest(&made.document(unknown, &json!({})), &[])]);
    let error = made.refused("");
    assert!(error.contains("no image of a container") && error.contains(unknown), "{error}");

    // A manifest that is called an index: both could be in one document.
    made.index(&[with(image, "mediaType", json!(INDEX))]);
    assert!(made.refused("").starts_with("the index sha256:"));
    let both = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "manifests": [], "config": {}, "layers": [] });
    made.index(&[made.document(INDEX, &both)]);
    let error = made.refused("");
    assert!(error.contains("it says that its type is") && error.contains(MANIFEST), "{error}");
}

#[test]
fn layers_are_those_of_the_configuration() {
    let made = Made::new();
    let layer = tar(&[("hello", "world")]);
    let config = |ids: &[String]| json!({ "os": "linux", "architecture": architecture(), "rootfs": { "type": "layers", "diff_ids": ids } });
    for media in [TAR, GZIP, ZSTD] {
        let other = digest(b"another");
        made.index(&[made.image_with(&[(media, layer.clone())], &config(std::slice::from_ref(&other)))]);
        let error = made.refused("");
        assert!(error.contains(&digest(&layer)) && error.contains(&other), "{error}");
        assert!(error.contains("uncompressed it has the digest"), "{error}");
    }
    made.index(&[made.image_with(&[(TAR, layer.clone())], &config(&[]))]);
    assert!(made.refused("").contains("it has 1 layers, and its configuration lists 0"));
    // A layer that is no archive, though its digests are right.
    for media in [TAR, GZIP, ZSTD] {
        made.index(&[made.image(&[(media, vec![0x5a; 4096])])]);
        assert!(made.refused("").contains("cannot be read"), "{media}");
    }
    let plain = made.image(&[(TAR, layer)]);
    let manifest: Value = serde_json::from_slice(&fs::read(made.file(&plain)).unwrap()).unwrap();
    let called = with(manifest["layers"][0].clone(), "mediaType", json!(GZIP));
    made.index(&[made.manifest(&manifest["config"], &[called])]);
    assert!(made.refused("").contains("cannot be read"));
}
