"""Apache Kafka on this machine: one broker in KRaft mode on loopback, its jars resolved by Maven.

For tests and for trying things out; a production cluster is somebody else's, reached through `log.bootstrap_servers`.
"""

from __future__ import annotations

import atexit
import base64
import re
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from infra.errors import Unavailable
from infra.identity import file_hash, short
from infra.locking import exclusive

POM = Path(__file__).parent / "deploy" / "kafka" / "pom.xml"
JAVA_MAJOR = 17
START_SECONDS = 60.0
STOP_SECONDS = 15.0
MAVEN_SECONDS = 600.0
# The client compiler and the serial collector start in half the time, which counts more here than throughput.
JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{listeners}
controller.listener.names=CONTROLLER
log.dirs={data}/log
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
"""


SECURED = """\
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={server}
ssl.truststore.type=PEM
ssl.truststore.location={authority}
listener.name.ssl.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


@dataclass(frozen=True)
class Security:
    """Two more listeners: `SSL`, which asks clients for a certificate, and `SASL_SSL`, which asks for a login."""

    authority: Path
    """PEM file of the authority that signs the clients' certificates."""
    server: Path
    """PEM file of the broker's private key (PKCS 8) and certificate, for 127.0.0.1."""
    user: str
    password: str
    """Letters and digits only: they stand in Java's configuration as they are."""


def missing() -> str:
    """Why a broker cannot run here; empty when Java and Maven are there."""
    if not shutil.which("java"):
        return f"Java is not installed; Kafka needs Java {JAVA_MAJOR} or newer"
    version = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
    found = re.search(r'version "(\d+)', version)
    if not found or int(found[1]) < JAVA_MAJOR:
        return f"Kafka needs Java {JAVA_MAJOR} or newer; found {version.splitlines()[0] if version else 'none'}"
    if not shutil.which("mvn"):
        return "Maven (mvn) is not installed; the broker's jars come through it"
    return ""


class KafkaBroker:
    """A broker whose jars are kept in `home` and whose log lies in `data` (None: a temporary folder, gone at `stop`).

    The address stays the same when the same object is stopped or killed and started again.
    """

    def __init__(self, home: Path, data: Path | None = None, security: Security | None = None) -> None:
        self.home = home
        self._security = security
        self._temporary = data is None
        self._data = data
        self._ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start, wait until it takes connections, and return its address `127.0.0.1:port`.

        Fetches about 50 MB of jars the first time. Raises `Unavailable` with the reason.
        """
        if reason := missing():
            raise Unavailable("Kafka cannot be started", seen=reason, fix="install it, or set log.bootstrap_servers")
        jars = self._jars()
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="quillstream-kafka-"))
        self._data.mkdir(parents=True, exist_ok=True)
        self._ports = self._ports or _free_ports(4)
        properties = self._data / "server.properties"
        properties.write_text(self._properties(self._data))
        java = ("java", *JVM, "-cp", f"{jars}/*")
        if not (self._data / "log" / "meta.properties").exists():
            options = ["-t", _cluster_id(), "-c", str(properties)]
            if self._security:
                user = f"name={self._security.user},password={self._security.password}"
                options += ["--add-scram", f"SCRAM-SHA-256=[{user}]"]
            _run(java, "kafka.tools.StorageTool", "format", *options)
        with (self._data / "broker.log").open("ab") as output:
            command = [*java, "kafka.Kafka", str(properties)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        atexit.register(self.stop)
        self._wait()
        return self.address

    def stop(self) -> None:
        """Shut down in order; by force after 15 s. Does nothing when it does not run."""
        self._end(force=False)
        if self._temporary and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None

    def kill(self) -> None:
        """End the process at once, as a power cut would; `start` brings it back with its log."""
        self._end(force=True)

    def __enter__(self) -> str:
        """The address, as `start` gives it."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """`127.0.0.1:port` after the first start; empty before."""
        return f"127.0.0.1:{self._ports[0]}" if self._ports else ""

    def secured_address(self, protocol: Literal["SSL", "SASL_SSL"]) -> str:
        """As `address`, of a listener of `Security`."""
        return f"127.0.0.1:{self._ports[2 if protocol == 'SSL' else 3]}" if self._ports and self._security else ""

    def _properties(self, data: Path) -> str:
        port, controller, *_ = self._ports
        listeners = secured = ""
        if self._security:
            listeners = f",SSL://{self.secured_address('SSL')},SASL_SSL://{self.secured_address('SASL_SSL')}"
            secured = SECURED.format(**asdict(self._security))
        return PROPERTIES.format(port=port, controller=controller, data=data, listeners=listeners) + secured

    def _jars(self) -> Path:
        jars = self.home / f"jars-{short(file_hash(POM))}"
        complete = jars / ".complete"
        with exclusive(self.home / "jars.lock"):
            if not complete.exists():
                copy = ("mvn", "--batch-mode", "--quiet", "--file", str(POM), "dependency:copy-dependencies")
                _run(copy, f"-DoutputDirectory={jars}", timeout=MAVEN_SECONDS)
                complete.touch()
        return jars

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if _answers(self.address):
                return
            time.sleep(0.1)
        assert self._data is not None
        last = (self._data / "broker.log").read_text(errors="replace").strip().splitlines()[-1:]
        self.kill()
        raise Unavailable("the Kafka broker did not start", seen=" ".join(last) or "no output", fix="see broker.log")

    def _end(self, *, force: bool) -> None:
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is None:
            return
        if not force:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                force = True
        if force:
            process.kill()
            process.wait()


def _run(command: tuple[str, ...], *arguments: str, timeout: float = 60.0) -> None:
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} did not end", rule=f"at most {timeout:.0f} s") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise Unavailable(f"{command[0]} {arguments[0]} failed", seen=lines[0] if lines else done.returncode)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _cluster_id() -> str:
    """A Kafka UUID: 22 characters of URL-safe base64. The version bits go first: a leading '-' would be an option."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes[6:] + uuid.uuid4().bytes[:6]).decode().rstrip("=")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except OSError:
        return False
