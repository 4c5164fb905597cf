//! Which runtimes there are, and what is said about those that are not.

use std::fs;
use std::path::PathBuf;

use runtimes::{Config, RuntimeState, Runtimes, Silent};
use tempfile::tempdir;

#[tokio::test]
async fn a_user_adds_and_overrides_runtimes_by_files() {
    let dir = tempdir().unwrap();
    let root = dir.path().join("ruby");
    for point in ["proc", "dev", "tmp", "var/task", "opt", "var/runtime"] {
        fs::create_dir_all(root.join(point)).unwrap();
    }
    let client = dir.path().join("client");
    fs::create_dir(&client).unwrap();
    let file = format!(
        "names = ['ruby3.4']\nroot = '{}'\nexecution_env = 'AWS_Lambda_{{name}}'\nenvironment = {{ A = 'b' }}\n\
         bootstrap = {{ command = ['/var/runtime/bootstrap'] }}\nmounts = [{{ source = '{}', target = '/var/runtime' }}]",
        root.display(),
        client.display()
    );
    let runtimes_d = dir.path().join("data/runtimes.d");
    fs::create_dir_all(&runtimes_d).unwrap();
    fs::write(runtimes_d.join("ruby.toml"), file).unwrap();
    fs::write(runtimes_d.join("notes.txt"), "no runtime").unwrap();
    let open = || Runtimes::open(Config { data_dir: dir.path().join("data"), ..Config::default() });
    let runtimes = open().unwrap();
    assert_eq!(runtimes.check("ruby3.4"), Ok(()));
    let image = runtimes.ensure("ruby3.4", &Silent).await.unwrap();
    assert_eq!(
        (image.root.clone(), image.mounts.clone()),
        (root.clone(), vec![(client.clone(), "/var/runtime".into())])
    );
    assert_eq!(image.env, [("A".to_owned(), "b".to_owned())]);
    let status = runtimes.list().into_iter().find(|status| status.name == "ruby3.4").unwrap();
    assert_eq!((status.state, status.file), (RuntimeState::Ready, Some(runtimes_d.join("ruby.toml"))));

    fs::remove_dir(&client).unwrap();
    let refused = open().unwrap().check("ruby3.4").unwrap_err();
    assert!(refused.contains(&client.display().to_string()), "{refused}");
    fs::write(runtimes_d.join("zzz.toml"), "names = [").unwrap();
    let error = open().err().unwrap().to_string();
    assert!(error.contains("zzz.toml"), "{error}");
}

#[test]
fn what_is_not_there_is_explained() {
    let dir = tempdir().unwrap();
    let config = Config {
        data_dir: dir.path().to_owned(),
        interpreters: [("python3.12".to_owned(), PathBuf::from("/nowhere/python"))].into(),
        ..Config::default()
    };
    let runtimes = Runtimes::open(config).unwrap();
    let refused = |name: &str| runtimes.check(name).unwrap_err();
    assert_eq!(
        refused("dotnetcore3.1"),
        "The runtime parameter of dotnetcore3.1 is no longer supported for creating or updating AWS Lambda functions. \
         We recommend you use a supported runtime while creating or updating functions."
    );
    assert!(refused("cobol85").contains("python3.13") && refused("cobol85").contains("runtimes.d"));
    assert!(refused("python3.12").contains("/nowhere/python"));
    assert_eq!(runtimes.check("provided.al2023"), Ok(()));
}
