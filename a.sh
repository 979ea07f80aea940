. /tmp/x/conf.sh
cd /tmp/x; rm -rf sa sb
topic t1 3
conf t1 sa 7501 > a.toml; conf t1 sb 7502 > b.toml
./limn topics --config a.toml | tail -1
python3 make.py 8 300 8000 > in.jsonl
./limn load --config a.toml in.jsonl
./limn run --config a.toml 2>a.log & A=$!
sleep 14; echo "A before B:"; m 7501
./limn run --config b.toml 2>b.log & B=$!
for i in 1 2 3 4 5 6 7 8; do sleep 10; echo "t=$((i*10)) A: $(m 7501)"; echo "        B: $(m 7502)"; done
kill $A $B; wait; tail -20 a.log
