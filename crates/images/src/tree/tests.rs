use super::*;

const META: Meta = Meta { mode: 0o644, uid: 1, gid: 2, mtime: 3 };

fn file(name: &'static str) -> Kind {
    Kind::File(Content::Bytes(name.as_bytes()))
}

fn directory() -> Kind {
    Kind::Directory(BTreeMap::new())
}

fn link(target: &str) -> Kind {
    Kind::Symlink(target.into())
}

fn tree(entries: &[(&str, Kind)]) -> Tree {
    let mut tree = Tree::new(0);
    for (path, kind) in entries {
        tree.insert(path.as_bytes(), META, kind.clone()).unwrap();
    }
    tree
}

/// Every path, depth first; directories with a slash, links with their target.
fn list(tree: &Tree) -> Vec<String> {
    fn walk(node: &Node, path: &str, out: &mut Vec<String>) {
        if let Kind::Directory(children) = &node.kind {
            for (name, child) in children {
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                out.push(match &child.kind {
                    Kind::Directory(_) => format!("{path}/"),
                    Kind::File(_) => path.clone(),
                    Kind::Symlink(target) => format!("{path} -> {}", String::from_utf8_lossy(target)),
                });
                walk(child, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(tree.root(), "", &mut out);
    out
}

#[test]
fn paths_do_not_climb() {
    let mut tree = tree(&[]);
    for path in ["..", "../etc/passwd", "a/../../b", "/..", "a/.."] {
        assert_eq!(tree.insert(path.as_bytes(), META, file("x")), Err(TreeError::Parent), "{path}");
    }
    assert_eq!(tree.insert(b"a\0b", META, file("x")), Err(TreeError::Zero));
    assert_eq!(tree.insert(&[b'a'; 300], META, file("x")), Err(TreeError::TooLong));
    assert_eq!(tree.insert("a/".repeat(300).as_bytes(), META, directory()), Err(TreeError::TooLong));
    assert_eq!(tree.insert(b"./", META, file("x")), Err(TreeError::Root));
    assert!(list(&tree).is_empty());
    tree.insert(b"/./a//b", META, file("x")).unwrap();
    assert_eq!(list(&tree), ["/a/", "/a/b"]);
}

#[test]
fn links_lead_to_what_is_in_the_image() {
    let mut tree = tree(&[("etc", link("/../../../etc2")), ("lib", link("usr/lib")), ("out", link("/"))]);
    tree.insert(b"etc/passwd", META, file("x")).unwrap();
    tree.insert(b"lib/libc.so", META, file("x")).unwrap();
    tree.insert(b"out/out/top", META, file("x")).unwrap();
    assert_eq!(
        list(&tree),
        [
            "/etc -> /../../../etc2",
            "/etc2/",
            "/etc2/passwd",
            "/lib -> usr/lib",
            "/out -> /",
            "/top",
            "/usr/",
            "/usr/lib/",
            "/usr/lib/libc.so"
        ]
    );
}

#[test]
fn links_in_circles_are_an_error() {
    let mut tree = tree(&[("a", link("b")), ("b", link("a")), ("f", file("x"))]);
    assert_eq!(tree.insert(b"a/x", META, file("x")), Err(TreeError::Loop));
    assert_eq!(tree.insert(b"f/x", META, file("x")), Err(TreeError::NotADirectory));
}

#[test]
fn deep_trees_cannot_be_made_through_links_either() {
    let mut tree = tree(&[]);
    let deep = "d/".repeat(200);
    tree.insert(deep.as_bytes(), META, directory()).unwrap();
    tree.insert(b"l", META, link(&deep)).unwrap();
    assert_eq!(
        tree.insert(deep.replace('d', "e").replacen('e', "l", 1).as_bytes(), META, file("x")),
        Err(TreeError::TooLong)
    );
}

#[test]
fn hard_links_are_to_files_of_the_image() {
    let mut tree = tree(&[("dir/f", file("x")), ("s", link("/etc/shadow"))]);
    tree.hard_link(b"g", b"/dir/f").unwrap();
    tree.hard_link(b"t", b"s").unwrap();
    assert_eq!(list(&tree), ["/dir/", "/dir/f", "/g", "/s -> /etc/shadow", "/t -> /etc/shadow"]);
    for target in ["dir", "/etc/shadow", "s/x", "missing", ""] {
        assert_eq!(tree.hard_link(b"h", target.as_bytes()), Err(TreeError::LinkTarget(target.into())), "{target}");
    }
    assert_eq!(tree.hard_link(b"h", b"../../etc/shadow"), Err(TreeError::Parent));
}

#[test]
fn what_comes_later_replaces() {
    let mut tree = tree(&[("d/f", file("x")), ("l", link("d")), ("x/y", file("x"))]);
    tree.next_layer();
    tree.insert(b"d", META, directory()).unwrap();
    // A directory over a link to one is a directory of its own.
    tree.insert(b"l", META, directory()).unwrap();
    tree.insert(b"x", META, file("x")).unwrap();
    assert_eq!(list(&tree), ["/d/", "/d/f", "/l/", "/x"]);
}

#[test]
fn whiteouts_delete_what_lower_layers_brought() {
    let below = [("d/a", file("x")), ("d/b", file("x")), ("e/f/g", file("x")), ("h", file("x"))];
    // Wherever in the layer they stand.
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]] {
        let mut tree = tree(&below);
        tree.next_layer();
        for step in order {
            match step {
                0 => tree.insert(b"d/b", META, file("y")).unwrap(),
                1 => assert_eq!(tree.whiteout(b"d/.wh..wh..opq"), Ok(true)),
                2 => assert_eq!(tree.whiteout(b".wh.e"), Ok(true)),
                3 => tree.insert(b"e/n", META, file("y")).unwrap(),
                _ => assert_eq!(tree.whiteout(b".wh.missing"), Ok(true)),
            }
        }
        assert_eq!(list(&tree), ["/d/", "/d/b", "/e/", "/e/n", "/h"], "{order:?}");
        let Kind::Directory(root) = &tree.root().kind else { panic!() };
        let Kind::Directory(d) = &root[&b"d"[..]].kind else { panic!() };
        assert_eq!(d[&b"b"[..]].kind, file("y"));
    }
}

#[test]
fn hostile_whiteouts_delete_nothing_else() {
    let mut tree = tree(&[("d/a", file("x")), ("l", link("/")), ("h", file("x"))]);
    tree.next_layer();
    for path in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        assert!(matches!(tree.whiteout(path.as_bytes()), Err(TreeError::Whiteout(_))), "{path}");
    }
    assert_eq!(tree.whiteout(b"../.wh.h"), Err(TreeError::Parent));
    assert_eq!(tree.whiteout(b".wh..wh.plnk"), Ok(true));
    assert_eq!(tree.whiteout(b"h/.wh..wh..opq"), Ok(true));
    assert_eq!(tree.whiteout(b"h"), Ok(false));
    assert_eq!(list(&tree), ["/d/", "/d/a", "/h", "/l -> /"]);
    // Through a link, within the image.
    assert_eq!(tree.whiteout(b"l/.wh.h"), Ok(true));
    assert_eq!(list(&tree), ["/d/", "/d/a", "/l -> /"]);
}

#[test]
fn ensured_are_only_those_that_are_missing() {
    let mut tree = tree(&[("run", link("var/run")), ("var/run/x", file("x")), ("tmp", file("x"))]);
    for path in ["run", "tmp", "var/task"] {
        tree.ensure(path, directory(), 0o755).unwrap();
    }
    assert_eq!(list(&tree), ["/run -> var/run", "/tmp", "/var/", "/var/run/", "/var/run/x", "/var/task/"]);
}

#[test]
fn names_without_end_are_refused() {
    let deep = |n: u32| format!("{n}{}/f", "/d".repeat(200));
    let mut tree = Tree::new(0);
    tree.room = 1 << 20;
    let full = (0..).find_map(|n| tree.insert(deep(n).as_bytes(), META, file("x")).err());
    assert_eq!(full, Some(TreeError::TooLarge));
    let mut tree = Tree::new(0);
    tree.room = 1 << 20;
    let target = "t".repeat(4000);
    let mut links = (0..).map(|n| tree.insert(format!("l{n}").as_bytes(), META, link(&target)));
    assert_eq!(links.position(|added| added.is_err()).map(|n| n < 300), Some(true));
}
