//! Images from a real registry, Debian's `docker-registry`, started by each test.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use images::oci::{Access, Layout, Pick, Remote, pull};
use images::{Image, ImageError, Limits, Options, Source, build};
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use serde_json::{Value, json};

use crate::support::*;

pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// On a port of its own; none where the program is missing and may be. `more` is added to its configuration.
    pub fn start(test: &str, more: &str) -> Option<Self> {
        let there = Command::new("docker-registry").arg("--version").output().is_ok();
        if !given(test, "docker-registry (Debian's package of that name)", there) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:0\"}}\n{more}",
            dir.path().join("data").display()
        );
        fs::write(&config, text.replace("DIR", &dir.path().display().to_string())).unwrap();
        let mut command = Command::new("docker-registry");
        let mut child = command.arg("serve").arg(&config).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = log.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.split(['"', ' ']).next()?.to_owned())
        });
        // It would be stopped by a full pipe.
        std::thread::spawn(move || log.for_each(drop));
        Some(Self { child, dir, address: address.expect("it says where it listens") })
    }

    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Pushes what is in the layout: all as blobs, and these as manifests, the last of them under the tag.
    pub fn push(&self, made: &Made, repository: &str, tag: &str, manifests: &[Value]) {
        let protocol = ClientProtocol::Http;
        let client = Client::new(ClientConfig { protocol, ..ClientConfig::default() });
        run(async {
            let image: Reference = self.name(&format!("{repository}:{tag}")).parse().unwrap();
            client.auth(&image, &RegistryAuth::Anonymous, RegistryOperation::Push).await.unwrap();
            for blob in made.path().join("blobs/sha256").read_dir().unwrap() {
                let bytes = fs::read(blob.unwrap().path()).unwrap();
                let digest = digest(&bytes);
                client.push_blob(&image, bytes, &digest).await.unwrap();
            }
            for (index, manifest) in manifests.iter().enumerate() {
                let bytes = fs::read(made.file(manifest)).unwrap();
                let media = manifest["mediaType"].as_str().unwrap().parse().unwrap();
                let by_digest = image.clone_with_digest(digest(&bytes));
                let target = if index + 1 == manifests.len() { &image } else { &by_digest };
                client.push_manifest_raw(target, bytes, media).await.unwrap();
            }
        });
    }

    /// The registry's own file of a blob.
    pub fn file(&self, digest: &str) -> PathBuf {
        let digits = digest.strip_prefix("sha256:").unwrap();
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(&digits[..2]).join(digits).join("data")
    }
}

pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn pulled(name: &str, cache: &Path) -> Result<Layout, ImageError> {
    let remote = Remote::parse(name)?;
    run(pull(&remote, &Access::default(), cache, &[], Limits::default(), &|_| {}))
}

fn built(layout: &Layout) -> Image {
    let out = tempfile::tempdir().unwrap();
    build(&Source::Oci(layout.clone()), &Options::default(), &out.path().join("image"), &|_| {}).unwrap()
}

fn name_of(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().to_owned()
}

/// An image of two layers.
fn sample() -> (Made, Value) {
    let made = Made::new();
    let lower = tar(&[("etc/", ""), ("etc/gone", "x"), ("etc/kept", &"kept".repeat(100_000))]);
    let image = made.image(&[(GZIP, lower), (ZSTD, tar(&[("etc/.wh.gone", ""), ("app", "code")]))]);
    made.index(std::slice::from_ref(&image));
    (made, image)
}

#[test]
fn a_tag_or_a_digest_is_pulled_and_kept() {
    let Some(registry) = Registry::start("a_tag_or_a_digest_is_pulled_and_kept", "") else { return };
    let (made, image) = sample();
    registry.push(&made, "team/app", "1.0", std::slice::from_ref(&image));
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("images/oci");
    let expected = {
        let out = tempfile::tempdir().unwrap();
        made.build("", &out.path().join("image"), Limits::default()).unwrap()
    };

    let by_tag = pulled(&registry.name("team/app:1.0"), &cache).unwrap();
    assert_eq!(by_tag, Layout { directory: cache.clone(), pick: Pick::Digest(name_of(&image)) });
    assert_eq!(built(&by_tag), expected);
    let by_digest = registry.name(&format!("team/app@{}", name_of(&image)));
    assert_eq!(pulled(&by_digest, &cache).unwrap(), by_tag);

    // The cache is a layout for everybody.
    let named = Layout { directory: cache.clone(), pick: Pick::Tag(registry.name("team/app:1.0")) };
    assert_eq!(built(&named), expected);
    assert_eq!(cache.join("tmp").read_dir().unwrap().count(), 0);

    let missing = pulled(&registry.name("team/app:2.0"), &cache).unwrap_err().to_string();
    assert!(missing.contains("team/app has no tag \"2.0\", or not all of it; its tags are: 1.0"), "{missing}");
    let missing = pulled(&registry.name("team/none:1"), &cache).unwrap_err().to_string();
    assert!(missing.contains(&format!("{} has no repository \"team/none\"", registry.address)), "{missing}");
    let other = digest(b"other");
    let missing = pulled(&registry.name(&format!("team/app@{other}")), &cache).unwrap_err().to_string();
    assert!(missing.contains(&format!("team/app has no {other}")), "{missing}");

    // What was pulled by digest does not need the registry again; a tag does.
    let address = registry.address.clone();
    drop(registry);
    assert_eq!(pulled(&by_digest, &cache).unwrap(), by_tag);
    let gone = pulled(&format!("{address}/team/app:1.0"), &cache).unwrap_err().to_string();
    assert!(gone.contains(&format!("{address} does not answer")) && gone.contains("registry running?"), "{gone}");
}

#[test]
fn of_an_index_only_this_machines_image_is_pulled() {
    let Some(registry) = Registry::start("of_an_index_only_this_machines_image_is_pulled", "") else { return };
    let (made, image) = sample();
    let theirs = tar(&[("other", "x")]);
    let other = made.image(&[(TAR, theirs.clone())]);
    let entries = [platform(other.clone(), "linux", "s390x"), platform(image.clone(), "linux", architecture())];
    let index = made.document(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }));
    registry.push(&made, "app", "multi", &[other.clone(), image.clone(), index.clone()]);
    fs::remove_file(registry.file(&digest(&theirs))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let layout = pulled(&registry.name("app:multi"), dir.path()).unwrap();
    assert_eq!(layout.pick, Pick::Digest(name_of(&index)));
    assert_eq!(built(&layout).container.unwrap().digest, name_of(&image));

    let nowhere = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [platform(other, "linux", "s390x")] });
    registry.push(&made, "app", "nowhere", &[made.document(INDEX, &nowhere)]);
    let error = pulled(&registry.name("app:nowhere"), dir.path()).unwrap_err().to_string();
    assert!(error.contains("no image for this machine") && error.contains("there is: linux/s390x"), "{error}");
}

#[test]
fn a_tag_that_moves_is_followed() {
    let Some(registry) = Registry::start("a_tag_that_moves_is_followed", "") else { return };
    let dir = tempfile::tempdir().unwrap();
    let push = |text: &str| {
        let made = Made::new();
        let image = made.image(&[(TAR, tar(&[("version", text)]))]);
        registry.push(&made, "app", "latest", std::slice::from_ref(&image));
        image
    };
    let first = push("1");
    let before = pulled(&registry.name("app"), dir.path()).unwrap();
    let second = push("2");
    let after = pulled(&registry.name("app"), dir.path()).unwrap();
    assert_eq!(
        (before.pick.clone(), after.pick.clone()),
        (Pick::Digest(name_of(&first)), Pick::Digest(name_of(&second)))
    );
    assert_ne!(built(&before).sha256, built(&after).sha256);
    let named = Layout { pick: Pick::Tag(registry.name("app:latest")), ..after.clone() };
    assert_eq!(built(&named), built(&after));
}

#[test]
fn a_registry_is_not_trusted() {
    let Some(registry) = Registry::start("a_registry_is_not_trusted", "") else { return };
    let (made, image) = sample();
    registry.push(&made, "app", "1", std::slice::from_ref(&image));
    let manifest: Value = serde_json::from_slice(&fs::read(made.file(&image)).unwrap()).unwrap();
    let name = registry.name("app:1");
    for part in [&manifest["config"], &manifest["layers"][0], &manifest["layers"][1]] {
        let dir = tempfile::tempdir().unwrap();
        let file = registry.file(part["digest"].as_str().unwrap());
        let bytes = fs::read(&file).unwrap();
        let mut wrong = bytes.clone();
        *wrong.last_mut().unwrap() ^= 1;
        for wrong in [wrong, [&bytes[..], b"more"].concat(), bytes[..bytes.len() - 1].to_vec()] {
            fs::write(&file, wrong).unwrap();
            let error = pulled(&name, dir.path()).unwrap_err().to_string();
            assert!(error.contains(&name_of(part)), "{error}");
            assert!(!dir.path().join("blobs/sha256").join(&name_of(part)[7..]).exists());
            assert_eq!(dir.path().join("tmp").read_dir().unwrap().count(), 0, "{error}");
        }
        fs::remove_file(&file).unwrap();
        assert!(pulled(&name, dir.path()).is_err());
        fs::write(&file, bytes).unwrap();
        // What came before it was kept, and it goes on from there.
        built(&pulled(&name, dir.path()).unwrap());
    }
    let remote = Remote::parse(&name).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let small = Limits { unpacked: 100, ..Limits::default() };
    let error = run(pull(&remote, &Access::default(), dir.path(), &[], small, &|_| {})).unwrap_err().to_string();
    assert!(error.contains("layer 1 sha256:") && error.contains("is larger than 100 bytes"), "{error}");
}

#[test]
fn a_damaged_cache_is_noticed() {
    let Some(registry) = Registry::start("a_damaged_cache_is_noticed", "") else { return };
    let (made, image) = sample();
    registry.push(&made, "app", "1", std::slice::from_ref(&image));
    let dir = tempfile::tempdir().unwrap();
    let by_digest = registry.name(&format!("app@{}", name_of(&image)));
    let layout = pulled(&by_digest, dir.path()).unwrap();
    let cached = |descriptor: &Value| dir.path().join("blobs/sha256").join(&name_of(descriptor)[7..]);
    // A manifest is pulled again.
    OpenOptions::new().append(true).open(cached(&image)).unwrap().write_all(b" ").unwrap();
    assert_eq!(pulled(&by_digest, dir.path()).unwrap(), layout);
    built(&layout);
    // A layer is named when it is read.
    let manifest: Value = serde_json::from_slice(&fs::read(made.file(&image)).unwrap()).unwrap();
    let layer = &manifest["layers"][0];
    let mut bytes = fs::read(cached(layer)).unwrap();
    bytes[20] ^= 1;
    fs::write(cached(layer), bytes).unwrap();
    pulled(&by_digest, dir.path()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let made = build(&Source::Oci(layout), &Options::default(), &out.path().join("image"), &|_| {});
    let error = made.unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains("remove it, and copy or pull the image again"), "{error}");
    fs::remove_file(cached(layer)).unwrap();
    built(&pulled(&by_digest, dir.path()).unwrap());
}

#[test]
fn credentials_are_asked_for_by_name() {
    // The registry makes the file, with a password that nobody knows.
    let htpasswd = "auth: {htpasswd: {realm: private, path: DIR/htpasswd}}\n";
    let Some(registry) = Registry::start("credentials_are_asked_for_by_name", htpasswd) else { return };
    let dir = tempfile::tempdir().unwrap();
    let error = pulled(&registry.name("team/secret:1"), dir.path()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("pull {}/team/secret:1: ", registry.address)), "{error}");
    assert!(error.contains(&format!("{} wants credentials for team/secret", registry.address)), "{error}");
    assert!(error.contains("skopeo copy docker://"), "{error}");
}
