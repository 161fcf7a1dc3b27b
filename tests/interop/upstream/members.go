// Members: processes of nebulad. See clusters.go.

package integration

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/testutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/pkg/v3/grpc_testing"
	"go.etcd.io/etcd/server/v3/config"

	"go.uber.org/zap"
	"google.golang.org/grpc"
)

const (
	step  = 50 * time.Millisecond
	steps = 1200 // a minute
)

// await asks until it holds; false after a minute.
func await(holds func() bool) bool {
	for i := 0; i < steps; i++ {
		if holds() {
			return true
		}
		time.Sleep(step)
	}
	return false
}

var given sync.Map // addresses: the kernel may give one of them again

func freeAddress() string {
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		l.Close()
		if _, again := given.LoadOrStore(l.Addr().String(), true); !again {
			return l.Addr().String()
		}
	}
}

func listens(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// dialer is bridge.go's way to the member.
type dialer struct{ address string }

func (d dialer) Dial() (net.Conn, error) { return net.Dial("tcp", d.address) }

// member is one nebulad.
type member struct {
	config.ServerConfig // what the tests read of it: Name, DataDir, URLs
	DialOptions         []grpc.DialOption
	ClientTLSInfo       *transport.TLSInfo

	cfg                 *ClusterConfig
	client, peer, admin string
	founders, joins     string
	grpcURL             string // where clients reach it
	bridge              *bridge
	cmd                 *exec.Cmd
	ended               chan struct{}
	id                  types.ID
	s                   *server
}

// server is what the tests ask of etcd's own server object.
type server struct{ m *member }

func (s *server) ID() types.ID     { return s.m.ID() }
func (s *server) Lead() uint64     { return s.m.lead() }
func (s *server) Leader() types.ID { return types.ID(s.m.lead()) }

func (m *member) GRPCURL() string                              { return m.grpcURL }
func (m *member) Bridge() *bridge                              { return m.bridge }
func (m *member) URL() string                                  { return "http://" + m.client }
func (m *member) RecordedRequests() []grpc_testing.RequestInfo { return nil }
func (m *member) StopNotify() <-chan struct{}                  { return m.ended }
func (m *member) ElectionTimeout() time.Duration               { return electionTicks * tickDuration }

// Metric: etcd's metrics have other names, and are at another port.
func (m *member) Metric(name string, labels ...string) (string, error) {
	return "", fmt.Errorf("nebulad has no metric %s", name)
}

func (m *member) status() (*clientv3.StatusResponse, error) {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{m.URL()}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return cli.Status(ctx, m.URL())
}

func (m *member) ID() types.ID {
	await(func() bool {
		if m.id == 0 {
			if s, err := m.status(); err == nil {
				m.id = types.ID(s.Header.MemberId)
			}
		}
		return m.id != 0
	})
	return m.id
}

func (m *member) lead() uint64 {
	s, err := m.status()
	if err != nil {
		return 0
	}
	return s.Leader
}

func (m *member) alive() bool {
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// Launch starts the process.
func (m *member) Launch() error {
	args := []string{"start", "--name", m.Name, "--data-dir", m.DataDir, "--client-addr", m.client,
		"--peer-addr", m.peer, "--admin-addr", m.admin, "--min-free-space", "0", "--ballast", "0"}
	if m.joins != "" {
		args = append(args, "--join", m.joins)
	} else {
		args = append(args, "--initial-cluster", m.founders)
	}
	if every := m.cfg.WatchProgressNotifyInterval; every > 0 {
		args = append(args, "--watch-progress-notify-interval", fmt.Sprintf("%.0fs", max(1, every.Seconds())))
	}
	log, err := os.OpenFile(m.DataDir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	cmd, ended := exec.Command(os.Getenv("NEBULAD"), args...), make(chan struct{})
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	m.cmd, m.ended = cmd, ended
	go func() { cmd.Wait(); log.Close(); close(ended) }()
	return nil
}

// WaitOK waits until it serves reads and writes.
func (m *member) WaitOK(t testutil.TB) {
	if !await(func() bool {
		resp, err := http.Get("http://" + m.admin + "/readyz")
		if err == nil {
			resp.Body.Close()
		}
		return !m.alive() || (err == nil && resp.StatusCode == http.StatusOK)
	}) || !m.alive() {
		t.Fatalf("member %s isn't ready", m.Name)
	}
}

// WaitStarted waits until it answers what needs no majority.
func (m *member) WaitStarted(t testutil.TB) {
	if !await(func() bool { _, err := m.status(); return err == nil }) {
		t.Fatalf("member %s doesn't answer", m.Name)
	}
}

func (m *member) ReadyNotify() <-chan struct{} {
	ready := make(chan struct{})
	go func() { await(func() bool { return listens(m.client) }); close(ready) }()
	return ready
}

// bridgeUp puts bridge.go's proxy between clients and the member, at the same address as before a restart.
func (m *member) bridgeUp() error {
	if !m.cfg.UseBridge {
		return nil
	}
	if m.grpcURL == m.URL() {
		m.grpcURL = "http://" + freeAddress()
	}
	l, err := net.Listen("tcp", strings.TrimPrefix(m.grpcURL, "http://"))
	if err != nil {
		return err
	}
	m.bridge, err = newBridge(dialer{m.client}, l)
	return err
}

func (m *member) bridgeDown() {
	if m.bridge != nil {
		m.bridge.Close()
		m.bridge = nil
	}
}

func (m *member) Stop(_ testutil.TB) {
	m.bridgeDown()
	m.cmd.Process.Signal(syscall.SIGTERM)
	<-m.ended
}

func (m *member) Terminate(_ testutil.TB) { m.Close() }

// InjectPartition: peers of one machine can't be told apart.
func (m *member) InjectPartition(t testutil.TB, _ ...*member)  { t.Skip("members can't be parted") }
func (m *member) RecoverPartition(_ testutil.TB, _ ...*member) {}
func (m *member) Pause()                                       { m.cmd.Process.Signal(syscall.SIGSTOP) }
func (m *member) Resume()                                      { m.cmd.Process.Signal(syscall.SIGCONT) }

func (m *member) Close() {
	m.bridgeDown()
	if m.cmd != nil && m.alive() {
		m.cmd.Process.Kill()
		<-m.ended
	}
}

// Restart returns when its port is there, as etcd's does.
func (m *member) Restart(_ testutil.TB) error {
	if err := m.Launch(); err != nil {
		return err
	}
	if !await(func() bool { return listens(m.client) }) {
		return fmt.Errorf("member %s doesn't listen", m.Name)
	}
	return m.bridgeUp()
}
