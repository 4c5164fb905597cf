"""The AWS CLI, started once: its many modules take half a second of a CPU to import, and a test runs dozens of commands.

`Cli` keeps a process of the suite's own Python in which `awscli` is imported, and nothing else done. For each command it
forks, and the child runs what the program `aws` runs, with the environment, the directory and the output of its caller.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile


class Cli:
    """Commands of the AWS CLI: `run(args, env, cwd)` is as `subprocess.run([aws, *args])` with its output captured."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, args, env, cwd=None):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            paths = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (out, err)]
            order = {"args": [str(arg) for arg in args], "env": env, "cwd": str(cwd or os.getcwd()), "paths": paths}
            print(json.dumps(order), file=self.process.stdin, flush=True)
            code = self.process.stdout.readline()
            assert code, "the process of the AWS CLI died"
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess(args, int(code), out.read(), err.read())

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def serve():
    """Runs commands, one a line of standard input; answers each with its exit code."""
    import awscli.clidriver

    awscli.clidriver.create_clidriver()  # imports what every command does
    gc.freeze()  # else each child copies what its collector looks at
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            # Nothing but an exit leads out of here.
            try:
                for number, path in zip((1, 2), order["paths"]):
                    os.dup2(os.open(path, os.O_WRONLY), number)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                data = os.environ["AWS_DATA_PATH"]  # which importing it has set
                os.environ.clear()
                os.environ.update(order["env"], AWS_DATA_PATH=data)
                os.chdir(order["cwd"])
                sys.argv = ["aws", *order["args"]]
                code = awscli.clidriver.main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                code = 255
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code or 0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__main__":
    serve()
