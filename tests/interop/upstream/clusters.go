// Clusters of nebulad for etcd's own integration tests.
//
// etcd's tests of its API (tests/integration of its repository) start members within the test's process, by
// cluster.go. This file takes that one's place (see __main__.py): the names that the tests use, but each member is a
// process, told what to do by flags and signals. What can't be had that way, a knob inside of the server or TLS, skips
// the test that asks for it.

package integration

import (
	"context"
	"fmt"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/testutil"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/client/v3"
	epb "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	lockpb "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"

	"go.uber.org/zap"
	"google.golang.org/grpc"
)

const (
	RequestWaitTimeout = 10 * time.Second
	requestTimeout     = 20 * time.Second
	tickDuration       = 100 * time.Millisecond
	electionTicks      = 15
)

// The tests that pass these are skipped: nebulad has no TLS.
var (
	TestTLSInfo          transport.TLSInfo
	testTLSInfoIP        transport.TLSInfo
	testTLSInfoExpired   transport.TLSInfo
	testTLSInfoExpiredIP transport.TLSInfo
)

// ClusterConfig has etcd's fields. Those of no use here are taken and say nothing.
type ClusterConfig struct {
	Size                        int
	PeerTLS                     *transport.TLSInfo
	ClientTLS                   *transport.TLSInfo
	DiscoveryURL                string
	AuthToken                   string
	AuthTokenTTL                uint
	UseGRPC                     bool
	QuotaBackendBytes           int64
	MaxTxnOps                   uint
	MaxRequestBytes             uint
	SnapshotCount               uint64
	SnapshotCatchUpEntries      uint64
	GRPCKeepAliveMinTime        time.Duration
	GRPCKeepAliveInterval       time.Duration
	GRPCKeepAliveTimeout        time.Duration
	SkipCreatingClient          bool
	ClientMaxCallSendMsgSize    int
	ClientMaxCallRecvMsgSize    int
	UseIP                       bool
	UseBridge                   bool
	UseTCP                      bool
	EnableLeaseCheckpoint       bool
	LeaseCheckpointInterval     time.Duration
	LeaseCheckpointPersist      bool
	WatchProgressNotifyInterval time.Duration
	CorruptCheckTime            time.Duration
}

// cluster is a ClusterV3 without its clients.
type cluster struct {
	cfg     *ClusterConfig
	Members []*member
	dir     string
}

func (c *cluster) add() *member {
	m := &member{cfg: c.cfg, client: freeAddress(), peer: freeAddress(), admin: freeAddress()}
	m.Name = fmt.Sprintf("m%d", len(c.Members))
	m.DataDir = filepath.Join(c.dir, m.Name)
	m.Logger = zap.NewNop()
	m.PeerURLs = types.MustNewURLs([]string{"http://" + m.peer})
	m.ClientURLs = types.MustNewURLs([]string{m.URL()})
	m.grpcURL = m.URL()
	m.s = &server{m}
	c.Members = append(c.Members, m)
	return m
}

// NewClusterByConfig makes members that are to be launched.
func NewClusterByConfig(t testutil.TB, cfg *ClusterConfig) *cluster {
	t.Helper()
	if cfg.ClientTLS != nil || cfg.PeerTLS != nil {
		t.Skip("nebulad has no TLS")
	}
	dir, err := os.MkdirTemp("", "upstream")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{cfg: cfg, dir: dir}
	t.Cleanup(func() { c.end(t) })
	var founders []string
	for i := 0; i < cfg.Size; i++ {
		m := c.add()
		founders = append(founders, m.Name+"="+m.peer)
	}
	for _, m := range c.Members {
		m.founders = strings.Join(founders, ",")
	}
	return c
}

// Launch returns when all serve.
func (c *cluster) Launch(t testutil.TB) {
	for _, m := range c.Members {
		if err := m.Launch(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.Members {
		m.WaitOK(t)
		if err := m.bridgeUp(); err != nil {
			t.Fatal(err)
		}
	}
}

// end leaves no process behind, nor anything on the disk. Idempotent; a lazy cluster has no t.
func (c *cluster) end(t testutil.TB) {
	for _, m := range c.Members {
		m.Close()
		if said, err := os.ReadFile(m.DataDir + ".log"); err == nil && t != nil && t.Failed() {
			t.Logf("%s said:\n%s", m.Name, said[max(0, len(said)-2000):])
		}
	}
	os.RemoveAll(c.dir)
}

// URLs are those of the living.
func (c *cluster) URLs() []string {
	var urls []string
	for _, m := range c.Members {
		if m.alive() {
			urls = append(urls, m.URL())
		}
	}
	return urls
}

func mustNewTransport(_ testutil.TB, _ transport.TLSInfo) *http.Transport { return &http.Transport{} }

func (c *cluster) WaitLeader(t testutil.TB) int { return c.waitLeader(t, c.Members) }

// waitLeader gives the index of the one that all living ones follow.
func (c *cluster) waitLeader(t testutil.TB, members []*member) int {
	found := -1
	await(func() bool {
		leads := map[uint64]bool{}
		for i, m := range members {
			if m.alive() {
				lead := m.lead()
				leads[lead] = true
				if lead == uint64(m.ID()) {
					found = i
				}
			}
		}
		return found >= 0 && len(leads) == 1 && leads[uint64(members[found].ID())]
	})
	if found < 0 {
		t.Fatal("no leader")
	}
	return found
}

func (c *cluster) WaitNoLeader() { c.waitNoLeader(c.Members) }

func (c *cluster) waitNoLeader(members []*member) {
	await(func() bool {
		for _, m := range members {
			if m.alive() && m.lead() != 0 {
				return false
			}
		}
		return true
	})
}

// ClusterV3 is a cluster with a client for each member.
type ClusterV3 struct {
	*cluster
	mu      sync.Mutex
	clients []*clientv3.Client
	all     *clientv3.Client
}

func NewClusterV3(t testutil.TB, cfg *ClusterConfig) *ClusterV3 {
	t.Helper()
	c := &ClusterV3{cluster: NewClusterByConfig(t, cfg)}
	c.Launch(t)
	for _, m := range c.Members {
		if cfg.SkipCreatingClient {
			break
		}
		cli, err := NewClientV3(m)
		if err != nil {
			t.Fatal(err)
		}
		c.clients = append(c.clients, cli)
	}
	return c
}

func (c *ClusterV3) Terminate(t testutil.TB) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, cli := range append(c.clients, c.all) {
		if cli != nil {
			if err := cli.Close(); err != nil && t != nil {
				t.Error(err)
			}
		}
	}
	c.end(t)
}

func NewClientV3(m *member) (*clientv3.Client, error) {
	return newClientV3(clientv3.Config{
		Endpoints:          []string{m.grpcURL},
		DialTimeout:        5 * time.Second,
		DialOptions:        append([]grpc.DialOption{grpc.WithBlock()}, m.DialOptions...),
		MaxCallSendMsgSize: m.cfg.ClientMaxCallSendMsgSize,
		MaxCallRecvMsgSize: m.cfg.ClientMaxCallRecvMsgSize,
	}, m.Logger)
}

func (c *ClusterV3) NewClientV3(i int) (*clientv3.Client, error) { return NewClientV3(c.Members[i]) }
func (c *ClusterV3) RandClient() *clientv3.Client                { return c.clients[rand.Intn(len(c.clients))] }
func (c *ClusterV3) Client(i int) *clientv3.Client               { return c.clients[i] }

func (c *ClusterV3) TakeClient(i int) {
	c.mu.Lock()
	c.clients[i] = nil
	c.mu.Unlock()
}

// ClusterClient knows all members.
func (c *ClusterV3) ClusterClient() (*clientv3.Client, error) {
	var err error
	if c.all == nil {
		var endpoints []string
		for _, m := range c.Members {
			endpoints = append(endpoints, m.grpcURL)
		}
		c.all, err = newClientV3(clientv3.Config{
			Endpoints: endpoints, DialTimeout: 5 * time.Second, DialOptions: []grpc.DialOption{grpc.WithBlock()},
		}, zap.NewNop())
	}
	return c.all, err
}

func makeClients(t testutil.TB, c *ClusterV3, made *[]*clientv3.Client, choose func() int) func() *clientv3.Client {
	var mu sync.Mutex
	*made = nil
	return func() *clientv3.Client {
		cli, err := c.NewClientV3(choose())
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		*made = append(*made, cli)
		return cli
	}
}

func MakeSingleNodeClients(t testutil.TB, c *ClusterV3, made *[]*clientv3.Client) func() *clientv3.Client {
	return makeClients(t, c, made, func() int { return 0 })
}

func MakeMultiNodeClients(t testutil.TB, c *ClusterV3, made *[]*clientv3.Client) func() *clientv3.Client {
	return makeClients(t, c, made, func() int { return rand.Intn(len(c.Members)) })
}

func CloseClients(t testutil.TB, clients []*clientv3.Client) {
	for _, cli := range clients {
		if err := cli.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// WaitClientV3 waits until the keyspace answers.
func WaitClientV3(t testutil.TB, kv clientv3.KV) {
	if !await(func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := kv.Get(ctx, "/")
		return err == nil
	}) {
		t.Fatal("the client gets no answer")
	}
}

func (c *ClusterV3) GetLearnerMembers() ([]*pb.Member, error) {
	resp, err := c.Client(0).MemberList(context.Background())
	if err != nil {
		return nil, err
	}
	var learners []*pb.Member
	for _, m := range resp.Members {
		if m.IsLearner {
			learners = append(learners, m)
		}
	}
	return learners, nil
}

// AddAndLaunchLearnerMember returns when the learner's port is there.
func (c *ClusterV3) AddAndLaunchLearnerMember(t testutil.TB) {
	m := c.add()
	if _, err := c.Client(0).MemberAddAsLearner(context.Background(), []string{"http://" + m.peer}); err != nil {
		t.Fatal(err)
	}
	m.joins = c.Members[0].peer
	if err := m.Restart(t); err != nil {
		t.Fatal(err)
	}
}

// MustNewMember is to be launched by the test.
func (c *ClusterV3) MustNewMember(t testutil.TB, resp *clientv3.MemberAddResponse) *member {
	m := c.add()
	m.peer, m.joins = strings.TrimPrefix(resp.Member.PeerURLs[0], "http://"), c.Members[0].peer
	return m
}

type grpcAPI struct {
	Cluster     pb.ClusterClient
	KV          pb.KVClient
	Lease       pb.LeaseClient
	Watch       pb.WatchClient
	Maintenance pb.MaintenanceClient
	Auth        pb.AuthClient
	Lock        lockpb.LockClient
	Election    epb.ElectionClient
}
